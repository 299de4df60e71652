#include <algorithm>

#include "launch/api/output.h"

namespace millrace {
namespace {

int32_t count_code_points(std::string_view utf8) {
  return static_cast<int32_t>(std::count_if(utf8.begin(), utf8.end(),
      [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// The prompt's ids, and where in the echo each begins.
std::vector<OutputLogprob> prompt_of(
    const ApiCall::Choice& choice, const std::shared_ptr<const Tokenizer>& tokenizer) {
  std::vector<OutputLogprob> entries;
  if (choice.request.sampling.num_prompt_logprobs < 0) return entries;
  Detokenizer detokenizer(tokenizer, {}, /*skip_special=*/false);
  std::string_view rest = choice.echo;
  int32_t offset = 0;
  for (const int32_t id : choice.request.prompt) {
    entries.push_back({{.token = id}, offset});
    const std::string text = id < tokenizer->vocab_size() ? detokenizer.push(id) : std::string();
    if (!rest.starts_with(text)) continue;  // a token that the tokenizer added
    rest.remove_prefix(text.size());
    offset += count_code_points(text);
  }
  return entries;
}

}  // namespace

void OutputPiece::append(OutputPiece later) {
  text += later.text;
  token_ids.insert(token_ids.end(), later.token_ids.begin(), later.token_ids.end());
  logprobs.insert(logprobs.end(), std::make_move_iterator(later.logprobs.begin()),
      std::make_move_iterator(later.logprobs.end()));
  if (prompt.empty()) prompt = std::move(later.prompt);
  finish = later.finish;
  status = std::move(later.status);
  stopped_by_string = later.stopped_by_string;
}

OutputStream::OutputStream(
    const ApiCall& call, size_t choice, std::shared_ptr<const Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)),
      detokenizer_(tokenizer_, call.choices[choice].prompt_tail, call.skip_special_tokens),
      stop_(call.stop),
      stop_token_ids_(call.choices[choice].request.stop_token_ids),
      include_stop_(call.include_stop_str_in_output),
      want_logprobs_(call.choices[choice].request.sampling.num_logprobs >= 0),
      shows_stop_(call.echo && want_logprobs_),
      only_prompt_(call.only_prompt),
      min_tokens_(call.choices[choice].request.min_tokens),
      prompt_(prompt_of(call.choices[choice], tokenizer_)),
      text_length_(count_code_points(call.choices[choice].echo)) {
  std::erase(stop_, "");
}

OutputPiece OutputStream::push(const Emission& emission) {
  OutputPiece piece;
  if (done_) return piece;
  if (!emission.tokens.empty()) take_prompt(emission, piece);
  if (only_prompt_ && !emission.tokens.empty()) {
    done_ = true;
    piece.finish = FinishReason::kLength;
    return piece;
  }
  const bool ends = emission.finish != FinishReason::kNone;
  for (size_t i = 0; i < emission.tokens.size(); ++i) {
    const SampledToken& sampled = emission.tokens[i];
    ++num_tokens_;
    const bool is_stop = emission.finish == FinishReason::kStop &&
                         i + 1 == emission.tokens.size() &&
                         std::find(stop_token_ids_.begin(), stop_token_ids_.end(), sampled.token) !=
                             stop_token_ids_.end();
    const bool is_hidden = is_stop && !include_stop_;
    if (!is_hidden || shows_stop_) add_token(sampled);
    if (is_hidden) break;
    // The logits may be wider than the tokenizer's vocabulary: such an id has no text.
    const bool has_text = sampled.token < tokenizer_->vocab_size();
    if (const auto match = add_text(has_text ? detokenizer_.push(sampled.token) : std::string())) {
      stop_at(*match, emission, piece);
      return piece;
    }
  }
  if (ends) {
    if (const auto match = add_text(detokenizer_.finish())) {
      stop_at(*match, emission, piece);
      return piece;
    }
    done_ = true;
    piece.finish = emission.finish;
    piece.status = emission.status;
  }
  give(ends ? text_end() : certain_end(), /*all_tokens=*/ends, piece);
  return piece;
}

void OutputStream::take_prompt(const Emission& emission, OutputPiece& piece) {
  piece.prompt = std::exchange(prompt_, {});
  for (size_t i = 1; i < piece.prompt.size() && i <= emission.prompt.size(); ++i)
    piece.prompt[i].sampled = emission.prompt[i - 1];
}

void OutputStream::add_token(const SampledToken& sampled) {
  // Without logprobs only the id is needed later.
  waiting_.push_back({want_logprobs_ ? sampled : SampledToken{sampled.token}, text_end(),
      std::nullopt, text_length_});
}

std::optional<OutputStream::Match> OutputStream::add_text(const std::string& text) {
  const size_t old_end = text_end();
  held_ += text;
  text_length_ += count_code_points(text);
  if (!text.empty())
    for (Waiting& token : waiting_)
      if (!token.end) token.end = text_end();
  if (num_tokens_ < min_tokens_) {
    search_from_ = text_end();
    return std::nullopt;
  }
  // The match that ends first, as if characters came one by one: the result must not depend on how
  // the text was cut into tokens. Among those that end together, the longest.
  std::optional<Match> best;
  for (const std::string& stop : stop_) {
    const size_t reach = old_end - std::min(old_end, stop.size() - 1);
    const size_t from = std::max({reach, search_from_, given_});
    if (from >= text_end()) continue;
    const size_t at = held_.find(stop, from - given_);
    if (at == std::string::npos) continue;
    const Match match{given_ + at, given_ + at + stop.size()};
    if (!best || match.end < best->end || (match.end == best->end && match.begin < best->begin))
      best = match;
  }
  return best;
}

// The end of the text that no stop string can still take back.
size_t OutputStream::certain_end() const {
  size_t longest = 0;
  const std::string_view held = held_;
  for (const std::string& stop : stop_) {
    const size_t open = text_end() - std::max(search_from_, given_);
    for (size_t n = std::min(open, stop.size() - 1); n > longest; --n)
      if (held.substr(held.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
  }
  return text_end() - longest;
}

void OutputStream::give(size_t end, bool all_tokens, OutputPiece& piece) {
  piece.text = held_.substr(0, end - given_);
  held_.erase(0, end - given_);
  given_ = end;
  size_t n = 0;
  for (; n < waiting_.size(); ++n) {
    Waiting& token = waiting_[n];
    if (!all_tokens && (!token.end || *token.end > given_)) break;
    piece.token_ids.push_back(token.sampled.token);
    if (want_logprobs_) piece.logprobs.push_back({std::move(token.sampled), token.offset});
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(n));
}

void OutputStream::stop_at(const Match& match, const Emission& emission, OutputPiece& piece) {
  const size_t cut = include_stop_ ? match.end : match.begin;
  // A token that shows at least one byte stays; what lies wholly behind the cut was never said.
  std::erase_if(waiting_, [&](const Waiting& token) { return token.begin >= cut; });
  give(cut, /*all_tokens=*/true, piece);
  held_.clear();
  done_ = true;
  piece.finish = FinishReason::kStop;
  piece.stopped_by_string = emission.finish == FinishReason::kNone;
}

}  // namespace millrace
