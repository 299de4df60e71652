// From emissions to text: one OutputStream per choice detokenizes, watches for stop strings and
// collects logprobs; the writer turns its pieces into OpenAI's response and chunk objects.
// A stream belongs to one thread at a time.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/text.h"
#include "launch/api/openai.h"
#include "scheduler/scheduler.h"

namespace millrace {

struct OutputLogprob {
  SampledToken sampled;     // ids and numbers; text is looked up when written
  int32_t text_offset = 0;  // in code points of the choice's text, for completions
};

// What became certain: may be empty text with no finish.
struct OutputPiece {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<OutputLogprob> logprobs;
  std::vector<OutputLogprob> prompt;  // if asked for, once; the first id has no logprob
  FinishReason finish = FinishReason::kNone;
  Status status;
  bool stopped_by_string = false;  // the engine still runs it: cancel it there

  bool has_logprobs() const { return !logprobs.empty() || !prompt.empty(); }
  bool empty() const { return text.empty() && token_ids.empty() && finish == FinishReason::kNone; }
  // Appends what came later; its finish and status become this piece's.
  void append(OutputPiece later);
};

class OutputStream {
 public:
  OutputStream(const ApiCall& call, size_t choice, std::shared_ptr<const Tokenizer> tokenizer);
  // Text is held back while it may be the start of a stop string, and ids and logprobs with it.
  // After a piece with finish != kNone further emissions give empty pieces.
  OutputPiece push(const Emission& emission);
  // Tokens the engine made for this choice, the stop token and the hidden ones included.
  int32_t num_tokens() const { return num_tokens_; }
  bool done() const { return done_; }

 private:
  // A token whose text is not wholly given out. Positions are bytes of the choice's text.
  struct Waiting {
    SampledToken sampled;
    size_t begin = 0;
    std::optional<size_t> end;  // none while its last character is unfinished
    int32_t offset = 0;         // of begin, in code points
  };
  struct Match {
    size_t begin, end;  // bytes of the choice's text
  };

  void take_prompt(const Emission& emission, OutputPiece& piece);
  size_t text_end() const { return given_ + held_.size(); }
  void add_token(const SampledToken& sampled);
  // Takes text of the tokens that wait; a stop string that ends in it.
  std::optional<Match> add_text(const std::string& text);
  size_t certain_end() const;
  void give(size_t text_end, bool all_tokens, OutputPiece& piece);
  void stop_at(const Match& match, const Emission& emission, OutputPiece& piece);

  std::shared_ptr<const Tokenizer> tokenizer_;
  Detokenizer detokenizer_;
  std::vector<std::string> stop_;
  std::vector<int32_t> stop_token_ids_;
  bool include_stop_;
  bool want_logprobs_;
  bool shows_stop_;  // among the logprobs of an echo, not in the text
  bool only_prompt_;
  int32_t min_tokens_;
  std::vector<OutputLogprob> prompt_;  // until the first token, if asked for
  std::string held_;                   // text that follows what was given out
  size_t given_ = 0;                   // bytes given out
  size_t search_from_ = 0;             // no stop string begins before: min_tokens
  int32_t text_length_;                // code points up to text_end(), the echo included
  std::vector<Waiting> waiting_;
  int32_t num_tokens_ = 0;
  bool done_ = false;
};

// A token as JSON can show it: bytes that are no characters become U+FFFD. "" for an id beyond the
// tokenizer's.
std::string token_text(const Tokenizer& tokenizer, int32_t id);

// Writes the JSON of one call. Chat or completion by call.kind. `call` and `model` must outlive it.
class ResponseWriter {
 public:
  // `id` like "chatcmpl-…"; `created` in unix seconds.
  ResponseWriter(
      const ApiCall& call, const ModelContext& model, const std::string& id, int64_t created);
  // Streaming: the JSON of one chunk (without "data: "). `first`: the choice's first chunk, which
  // carries the role in chats. `completion_tokens`: so far, of all choices; told if asked for.
  std::string chunk(
      size_t choice, const OutputPiece& piece, bool first, int32_t completion_tokens) const;
  // The last chunk when include_usage was asked.
  std::string usage_chunk(int32_t completion_tokens) const;
  // Not streaming: the whole response of all choices, each the concatenation of its pieces.
  std::string response(const std::vector<OutputPiece>& choices, int32_t completion_tokens) const;

 private:
  std::string usage(int32_t completion_tokens) const;
  // Appends the member, where it was asked for.
  void add_prompt_logprobs(std::string& out, const OutputPiece& piece) const;
  // Appends an object of `choices`; `chunk`: of a stream.
  void add_choice(
      std::string& out, size_t choice, const OutputPiece& piece, bool first, bool chunk) const;

  const ApiCall& call_;
  const ModelContext& model_;
  std::string response_begin_, chunk_begin_;  // up to the choices
  int32_t num_logprobs_;                      // -1: none
};

}  // namespace millrace
