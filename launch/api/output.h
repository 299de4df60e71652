// From emissions to text: one OutputStream per choice detokenizes, watches for stop strings and
// collects logprobs; the writers turn its pieces into OpenAI's response and chunk objects.
// A stream belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
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
  FinishReason finish = FinishReason::kNone;
  Status status;
  bool stopped_by_string = false;  // the engine still runs it: cancel it there
};

class OutputStream {
 public:
  OutputStream(const ApiCall& call, size_t choice, std::shared_ptr<const Tokenizer> tokenizer);
  // Text is held back while it may be the start of a stop string. After a piece with finish !=
  // kNone further emissions give empty pieces.
  OutputPiece push(const Emission& emission);
  int32_t num_tokens() const { return num_tokens_; }

 private:
  Detokenizer detokenizer_;
  std::vector<std::string> stop_;
  bool include_stop_ = false;
  bool want_logprobs_ = false;
  std::string held_;
  int32_t num_tokens_ = 0;
  int32_t text_length_ = 0;  // code points
  bool done_ = false;
};

// Writes the JSON of one call. Chat or completion by call.kind.
class ResponseWriter {
 public:
  // `id` like "chatcmpl-…"; `created` in unix seconds.
  ResponseWriter(const ApiCall& call, const ModelContext& model, std::string id, int64_t created);
  // Streaming: the JSON of one chunk (without "data: "). `first`: the choice's first chunk, which
  // carries the role in chats.
  std::string chunk(size_t choice, const OutputPiece& piece, bool first) const;
  // The last chunk when include_usage was asked.
  std::string usage_chunk(int32_t completion_tokens) const;
  // Not streaming: the whole response of all choices, each the concatenation of its pieces.
  std::string response(const std::vector<OutputPiece>& choices, int32_t completion_tokens) const;

 private:
  const ApiCall& call_;
  const ModelContext& model_;
  std::string id_;
  int64_t created_;
};

}  // namespace millrace
