#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/archive/iterators/base64_from_binary.hpp>
#include <boost/archive/iterators/transform_width.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <cmath>
#include <deque>
#include <optional>
#include <tuple>

#include "engine/model/json_fields.h"
#include "engine/model/stored_model.h"

namespace millrace {

namespace {

namespace json = boost::json;

constexpr size_t kMaxTokenBytes = 1024;
// Of merges rebuilt from scores: Gemma's 256,000 tokens give 580,000, in 2^25 bytes looked up.
constexpr size_t kMaxMerges = 4 << 20;
constexpr size_t kMaxLookups = 1 << 29;
constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, SentencePiece's visible space

enum TokenType { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// How a byte-level vocabulary cut its training text before learning merges (tokenizer.ggml.pre).
struct PreTokenizer {
  std::string_view name;
  std::string_view split = {};  // regex of the pieces; empty: GPT-2's, built into ByteLevel
  bool single_digits = false;   // every digit stands alone
  bool ignore_merges = false;   // a piece that is a token is not merged up from bytes
  bool add_bos = false;         // unless tokenizer.ggml.add_bos_token says otherwise
  bool nfc = false;
};
constexpr std::string_view kLlama3Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Split =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Words are cut where small letters end and capitals begin.
constexpr std::string_view kTekkenSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt4oSplit =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::array kPreTokenizers = {
    PreTokenizer{.name = "gpt-2"},
    PreTokenizer{.name = "olmo"},
    PreTokenizer{.name = "smollm", .single_digits = true},
    PreTokenizer{
        .name = "llama-bpe", .split = kLlama3Split, .ignore_merges = true, .add_bos = true},
    PreTokenizer{.name = "llama3", .split = kLlama3Split, .ignore_merges = true, .add_bos = true},
    PreTokenizer{.name = "llama-v3", .split = kLlama3Split, .ignore_merges = true, .add_bos = true},
    PreTokenizer{.name = "qwen2", .split = kQwen2Split, .nfc = true},
    PreTokenizer{.name = "deepseek-r1-qwen", .split = kQwen2Split},
    PreTokenizer{.name = "dbrx", .split = kLlama3Split},  // OLMo 2, Phi-4
    PreTokenizer{.name = "gpt-4o", .split = kGpt4oSplit},
    PreTokenizer{.name = "tekken", .split = kTekkenSplit, .ignore_merges = true, .add_bos = true},
};

struct Vocabulary {
  std::vector<std::string_view> tokens;                 // of the metadata or `respelled`
  std::vector<TokenType> types;                         // one per token
  std::unordered_map<std::string_view, int64_t> index;  // token -> id
  std::deque<std::string> respelled;
  std::optional<int64_t> unknown;  // the token of what the vocabulary lacks
};

Vocabulary read_vocabulary(const JsonFields& metadata, int32_t vocab_size) {
  const auto tokens = metadata.texts("tokenizer.ggml.tokens");
  if (!tokens) metadata.fail("'tokenizer.ggml.tokens' is missing");
  if (tokens->size() > static_cast<size_t>(vocab_size)) {
    metadata.fail(
        "the vocabulary has {} tokens, the embedding only {} rows", tokens->size(), vocab_size);
  }
  const auto last = static_cast<int64_t>(tokens->size()) - 1;
  Vocabulary vocabulary{*tokens, std::vector(tokens->size(), kNormal), {}, {},
      metadata.integer("tokenizer.ggml.unknown_token_id", 0, last)};
  if (const auto types = metadata.numbers("tokenizer.ggml.token_type")) {
    if (types->size() != tokens->size()) metadata.fail("token types and tokens differ in number");
    for (size_t i = 0; i < types->size(); ++i) {
      const double type = (*types)[i];
      if (!(type >= 1 && type <= 6)) metadata.fail("token {} has no valid type", i);
      vocabulary.types[i] = static_cast<TokenType>(static_cast<int>(type));
      if (vocabulary.types[i] == kUnknown && !vocabulary.unknown) {
        vocabulary.unknown = static_cast<int64_t>(i);
      }
    }
  }
  vocabulary.index.reserve(tokens->size());
  for (size_t i = 0; i < tokens->size(); ++i) {
    const std::string_view token = vocabulary.tokens[i];
    if (token.size() > kMaxTokenBytes) metadata.fail("token {} is too long", i);
    if (!vocabulary.index.emplace(token, static_cast<int64_t>(i)).second) {
      metadata.fail("token {} is in the vocabulary twice", i);
    }
  }
  return vocabulary;
}

using Merge = std::pair<std::string_view, std::string_view>;

std::vector<Merge> listed_merges(
    const JsonFields& metadata, const std::vector<std::string_view>& lines) {
  std::vector<Merge> merges;
  merges.reserve(lines.size());
  for (const std::string_view line : lines) {
    const size_t space = line.find(' ', 1);
    if (space == std::string::npos) metadata.fail("a line of tokenizer.ggml.merges has no pair");
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return merges;
}

int64_t code_points(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; });
}

std::vector<double> scores_of(const JsonFields& metadata, const Vocabulary& vocabulary) {
  auto scores = metadata.numbers("tokenizer.ggml.scores");
  if (!scores || scores->size() != vocabulary.tokens.size()) {
    metadata.fail("'tokenizer.ggml.scores' is missing or has not one score per token");
  }
  for (size_t id = 0; id < scores->size(); ++id) {
    if (std::isnan((*scores)[id])) metadata.fail("the score of token {} is not a number", id);
  }
  return *std::move(scores);
}

// SentencePiece stores scores, not merges: every way to make a token of two others is a merge, the
// best score first (as transformers rebuilds them, so that ties fall alike). User-defined tokens
// take no part: they are found whole.
std::vector<Merge> merges_from_scores(const JsonFields& metadata, const Vocabulary& vocabulary) {
  const std::vector<double> scores = scores_of(metadata, vocabulary);
  const auto& tokens = vocabulary.tokens;
  const auto find_text = [&](std::string_view text) -> std::optional<int64_t> {
    const auto found = vocabulary.index.find(text);
    if (found == vocabulary.index.end()) return std::nullopt;
    const TokenType type = vocabulary.types[static_cast<size_t>(found->second)];
    return type == kNormal ? std::optional(found->second) : std::nullopt;
  };
  // What decides the order, the first difference first: score and lengths (in code points)
  // downwards, so negative here, then the ids of the whole and its parts.
  using Rank = std::tuple<double, int64_t, int64_t, int64_t, int64_t, int64_t>;
  std::vector<std::pair<Rank, Merge>> ranked;
  size_t looked_up = 0;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const auto whole = find_text(tokens[id]);
    looked_up += tokens[id].size() * tokens[id].size();
    if (looked_up > kMaxLookups || ranked.size() > kMaxMerges) {
      metadata.fail("its tokens are too long or too alike to be merged from scores (token {})", id);
    }
    for (size_t cut = 1; whole && cut < tokens[id].size(); ++cut) {
      const Merge merge(tokens[id].substr(0, cut), tokens[id].substr(cut));
      const auto left = find_text(merge.first), right = find_text(merge.second);
      if (!left || !right) continue;
      ranked.emplace_back(Rank(-scores[id], -code_points(merge.first), -code_points(merge.second),
                              *whole, *left, *right),
          merge);
    }
  }
  std::ranges::sort(ranked, {}, &std::pair<Rank, Merge>::first);
  std::vector<Merge> merges;
  merges.reserve(ranked.size());
  for (const auto& [rank, merge] : ranked) merges.push_back(merge);
  return merges;
}

json::object bpe_model(const Vocabulary& vocabulary, const std::vector<Merge>& merges) {
  json::object vocab;
  vocab.reserve(vocabulary.tokens.size());
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) vocab[vocabulary.tokens[i]] = i;
  json::array pairs;
  pairs.reserve(merges.size());
  for (const Merge& merge : merges) pairs.push_back(json::array{merge.first, merge.second});
  return {{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr},
      {"continuing_subword_prefix", nullptr}, {"end_of_word_suffix", nullptr}, {"fuse_unk", false},
      {"byte_fallback", false}, {"ignore_merges", false}, {"vocab", std::move(vocab)},
      {"merges", std::move(pairs)}};
}

// Phi's added tokens swallow the blanks around them; GGUF has no field for that, so it goes by the
// architecture: Phi-3 (SentencePiece) those behind, Phi-4 (dbrx) those on both sides.
json::array added_tokens(const JsonFields& metadata, const Vocabulary& vocabulary) {
  const bool phi = metadata.text("general.architecture") == "phi3";
  const bool phi3 = phi && metadata.text("tokenizer.ggml.model") == "llama";
  const bool phi4 = phi && metadata.text("tokenizer.ggml.pre") == "dbrx";
  json::array added;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const TokenType type = vocabulary.types[i];
    if (type != kUnknown && type != kControl && type != kUserDefined) continue;
    const std::string_view token = vocabulary.tokens[i];
    const bool plain = token == "<unk>" || token == "<s>" || token == "<|endoftext|>";
    added.push_back(json::object{{"id", i}, {"content", token}, {"single_word", false},
        {"lstrip", phi4}, {"rstrip", phi4 || (phi3 && !plain)}, {"normalized", false},
        {"special", type != kUserDefined}});
  }
  return added;
}

json::object byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true},
      {"use_regex", use_regex}};
}

json::object replace(std::string_view from, std::string_view to, std::string_view kind = "String") {
  return {{"type", "Replace"}, {"pattern", json::object{{kind, from}}}, {"content", to}};
}

json::value pre_tokenizer_of(const PreTokenizer& pre) {
  json::array steps;
  if (pre.single_digits) {
    steps.push_back(json::object{{"type", "Digits"}, {"individual_digits", true}});
  }
  if (!pre.split.empty()) {
    steps.push_back(json::object{{"type", "Split"}, {"pattern", json::object{{"Regex", pre.split}}},
        {"behavior", "Isolated"}, {"invert", false}});
  }
  steps.push_back(byte_level(/*use_regex=*/pre.split.empty()));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

// Puts BOS before and EOS behind a text, as the file asks; null when it asks for neither.
json::value post_processor(const JsonFields& metadata, const Vocabulary& vocabulary,
    bool bos_if_silent, bool eos_if_silent) {
  json::object special_tokens;
  const auto special = [&](const std::string& which, bool if_silent) -> std::string_view {
    const auto asked = metadata.boolean(fmt::format("tokenizer.ggml.add_{}_token", which));
    const auto last = static_cast<int64_t>(vocabulary.tokens.size()) - 1;
    const auto id = metadata.integer(fmt::format("tokenizer.ggml.{}_token_id", which), 0, last);
    if (asked == true && !id) metadata.fail("'{}' is to be added but not named", which);
    if (!asked.value_or(if_silent) || !id) return {};
    const std::string_view token = vocabulary.tokens[static_cast<size_t>(*id)];
    special_tokens[token] =
        json::object{{"id", token}, {"ids", json::array{*id}}, {"tokens", json::array{token}}};
    return token;
  };
  const std::string_view bos = special("bos", bos_if_silent);
  const std::string_view eos = special("eos", eos_if_silent);
  if (special_tokens.empty()) return nullptr;
  json::array single;
  const auto add = [](json::array& to, std::string_view kind, std::string_view id) {
    if (!id.empty()) to.push_back(json::object{{kind, json::object{{"id", id}, {"type_id", 0}}}});
  };
  add(single, "SpecialToken", bos);
  add(single, "Sequence", "A");
  add(single, "SpecialToken", eos);
  json::array pair = single;  // never asked for, but a tokenizer.json has it
  add(pair, "Sequence", "B");
  return {{"type", "TemplateProcessing"}, {"single", std::move(single)}, {"pair", std::move(pair)},
      {"special_tokens", std::move(special_tokens)}};
}

std::string assemble(const JsonFields& metadata, const Vocabulary& vocabulary,
    json::value normalizer, json::value pre, json::value post, json::value decoder,
    json::object model) {
  return json::serialize(json::object{{"version", "1.0"}, {"truncation", nullptr},
      {"padding", nullptr}, {"added_tokens", added_tokens(metadata, vocabulary)},
      {"normalizer", std::move(normalizer)}, {"pre_tokenizer", std::move(pre)},
      {"post_processor", std::move(post)}, {"decoder", std::move(decoder)},
      {"model", std::move(model)}});
}

std::string byte_level_tokenizer(const JsonFields& metadata, const Vocabulary& vocabulary) {
  const std::string name = metadata.text("tokenizer.ggml.pre").value_or("");
  const auto* pre = std::ranges::find(kPreTokenizers, name, &PreTokenizer::name);
  if (pre == kPreTokenizers.end()) {
    std::string known;
    for (const PreTokenizer& p : kPreTokenizers) {
      known += (known.empty() ? "" : ", ") + std::string(p.name);
    }
    metadata.fail(
        "the pre-tokenizer '{}' (tokenizer.ggml.pre) is not known; known are: {}. Use the model as "
        "a Hugging Face folder",
        name, known);
  }
  const auto lines = metadata.texts("tokenizer.ggml.merges");
  if (!lines) metadata.fail("'tokenizer.ggml.merges' is missing");
  json::object model = bpe_model(vocabulary, listed_merges(metadata, *lines));
  model["ignore_merges"] = pre->ignore_merges;
  json::value normalizer = nullptr;
  if (pre->nfc) normalizer = json::object{{"type", "NFC"}};
  return assemble(metadata, vocabulary, std::move(normalizer), pre_tokenizer_of(*pre),
      post_processor(metadata, vocabulary, pre->add_bos, false), byte_level(true),
      std::move(model));
}

json::object sentencepiece_bpe(const JsonFields& metadata, const Vocabulary& vocabulary) {
  const auto lines = metadata.texts("tokenizer.ggml.merges");
  json::object model = bpe_model(vocabulary,
      lines ? listed_merges(metadata, *lines) : merges_from_scores(metadata, vocabulary));
  model["fuse_unk"] = true;
  model["byte_fallback"] = true;
  if (vocabulary.unknown) {
    model["unk_token"] = vocabulary.tokens[static_cast<size_t>(*vocabulary.unknown)];
  }
  return model;
}

json::object unigram(const JsonFields& metadata, const Vocabulary& vocabulary) {
  const std::vector<double> scores = scores_of(metadata, vocabulary);
  if (!vocabulary.unknown) metadata.fail("the vocabulary has no unknown token");
  json::array vocab;
  vocab.reserve(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    vocab.push_back(json::array{vocabulary.tokens[i], scores[i]});
  }
  const bool has_bytes = std::ranges::find(vocabulary.types, kByte) != vocabulary.types.end();
  return {{"type", "Unigram"}, {"unk_id", *vocabulary.unknown}, {"vocab", std::move(vocab)},
      {"byte_fallback", has_bytes}};
}

// SentencePiece's rules of rewriting characters, compiled: base64 of the file's bytes.
std::string charsmap(const std::vector<double>& numbers) {
  namespace iterators = boost::archive::iterators;
  using Base64 = iterators::base64_from_binary<iterators::transform_width<const char*, 6, 8>>;
  std::string bytes;
  for (const double n : numbers) bytes.push_back(static_cast<char>(static_cast<int>(n)));
  bytes.append((3 - bytes.size() % 3) % 3, '\0');
  std::string text(Base64(bytes.data()), Base64(bytes.data() + bytes.size()));
  const size_t padding = (3 - numbers.size() % 3) % 3;
  text.resize(text.size() - padding);
  return text.append(padding, '=');
}

// User-defined tokens are found in the text as it was written, before its spaces become visible.
void respell_user_defined(const JsonFields& metadata, Vocabulary& vocabulary) {
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    std::string_view& token = vocabulary.tokens[i];
    if (vocabulary.types[i] != kUserDefined || token.find(kSpace) == std::string::npos) continue;
    std::string& text = vocabulary.respelled.emplace_back(token);
    for (size_t at; (at = text.find(kSpace)) != std::string::npos; text[at] = ' ') {
      text.erase(at, kSpace.size() - 1);
    }
    token = text;
    if (!vocabulary.index.emplace(token, static_cast<int64_t>(i)).second) {
      metadata.fail("token {} is in the vocabulary twice", i);
    }
  }
}

std::string sentencepiece_tokenizer(
    const JsonFields& metadata, Vocabulary& vocabulary, bool is_unigram) {
  respell_user_defined(metadata, vocabulary);
  json::array normalizers;
  json::array decoders;
  decoders.push_back(replace(kSpace, " "));
  decoders.push_back(json::object{{"type", "ByteFallback"}});
  decoders.push_back(json::object{{"type", "Fuse"}});
  if (const auto rules = metadata.numbers("tokenizer.ggml.precompiled_charsmap")) {
    normalizers.push_back(
        json::object{{"type", "Precompiled"}, {"precompiled_charsmap", charsmap(*rules)}});
  }
  if (metadata.boolean("tokenizer.ggml.remove_extra_whitespaces") == true) {
    normalizers.push_back(replace("\\A +| +\\z", "", "Regex"));
    normalizers.push_back(replace(" {2,}", " ", "Regex"));
  }
  // SentencePiece's dummy prefix: one space before a text (and before each stretch between added
  // tokens), taken off again when decoding.
  if (metadata.boolean("tokenizer.ggml.add_space_prefix").value_or(true)) {
    normalizers.push_back(json::object{{"type", "Prepend"}, {"prepend", kSpace}});
    decoders.push_back(
        json::object{{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  normalizers.push_back(replace(" ", kSpace));
  return assemble(metadata, vocabulary,
      {{"type", "Sequence"}, {"normalizers", std::move(normalizers)}}, nullptr,
      post_processor(
          metadata, vocabulary, /*bos_if_silent=*/!is_unigram, /*eos_if_silent=*/is_unigram),
      {{"type", "Sequence"}, {"decoders", std::move(decoders)}},
      is_unigram ? unigram(metadata, vocabulary) : sentencepiece_bpe(metadata, vocabulary));
}

}  // namespace

std::string make_tokenizer_json(const JsonFields& metadata, int32_t vocab_size) {
  const auto kind = metadata.text("tokenizer.ggml.model");
  if (!kind || *kind == "none" || *kind == "no_vocab") return {};
  if (*kind != "gpt2" && *kind != "llama" && *kind != "t5") {
    metadata.fail(
        "the tokenizer '{}' (tokenizer.ggml.model) is not supported; supported are gpt2, llama and "
        "t5",
        *kind);
  }
  Vocabulary vocabulary = read_vocabulary(metadata, vocab_size);
  return *kind == "gpt2"
             ? byte_level_tokenizer(metadata, vocabulary)
             : sentencepiece_tokenizer(metadata, vocabulary, /*is_unigram=*/*kind == "t5");
}

}  // namespace millrace
