// A model for tests of the ways in: byte-level tokenizer (id = byte, then the specials and the
// tokens a test adds), a plain chat template. Real tokenizer and template code, made-up vocabulary.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <memory>
#include <string>
#include <vector>

#include "launch/api/model_context.h"

namespace millrace {

inline constexpr int32_t kEos = 256;
inline constexpr int32_t kFirstExtraToken = 257;

// The character that byte-level BPE vocabularies write for a byte (Radford et al. 2019).
inline std::string byte_symbol(unsigned char byte) {
  uint32_t code = 0, unprintable = 0;
  for (uint32_t b = 0; b <= byte; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    code = printable ? b : 256 + unprintable++;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

inline std::string test_tokenizer_json(const std::vector<std::string>& extra_tokens) {
  boost::json::object vocab;
  for (int b = 0; b < 256; ++b) vocab[byte_symbol(static_cast<unsigned char>(b))] = b;
  vocab["<eos>"] = kEos;
  int32_t id = kFirstExtraToken;
  for (const std::string& token : extra_tokens) {
    std::string symbols;
    for (const char c : token) symbols += byte_symbol(static_cast<unsigned char>(c));
    vocab[symbols] = id++;
  }
  const boost::json::object eos{{"id", kEos}, {"content", "<eos>"}, {"single_word", false},
      {"lstrip", false}, {"rstrip", false}, {"normalized", false}, {"special", true}};
  const boost::json::object byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false},
      {"trim_offsets", false}, {"use_regex", false}};
  boost::json::array added;
  added.push_back(eos);
  return boost::json::serialize(boost::json::object{{"version", "1.0"}, {"truncation", nullptr},
      {"padding", nullptr}, {"added_tokens", added}, {"normalizer", nullptr},
      {"pre_tokenizer", byte_level}, {"post_processor", nullptr}, {"decoder", byte_level},
      {"model", boost::json::object{{"type", "BPE"}, {"dropout", nullptr}, {"unk_token", nullptr},
                    {"continuing_subword_prefix", nullptr}, {"end_of_word_suffix", nullptr},
                    {"fuse_unk", false}, {"byte_fallback", false}, {"vocab", vocab},
                    {"merges", boost::json::array()}}}});
}

inline ModelContext test_model(const std::vector<std::string>& extra_tokens = {}) {
  ModelContext model;
  model.name = "test-model";
  model.tokenizer = Tokenizer::from_json(test_tokenizer_json(extra_tokens));
  model.chat_template = ChatTemplate::parse(
      "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
      "{% if add_generation_prompt %}<|assistant|>{% endif %}",
      "", "<eos>");
  model.vocab_size = model.tokenizer->vocab_size();
  model.max_model_len = 256;
  model.eos_token_ids = {kEos};
  model.created = 1'700'000'000;
  return model;
}

}  // namespace millrace
