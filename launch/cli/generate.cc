// `millrace generate`: one prompt, its continuation on standard output.
#include <fmt/format.h>
#include <unistd.h>

#include <boost/json/array.hpp>
#include <ctime>
#include <iostream>
#include <iterator>

#include "comm/mpi_world.h"
#include "engine/base/file.h"
#include "engine/base/log.h"
#include "launch/cli/answer.h"
#include "launch/cli/commands.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxPromptBytes = 64 << 20;
constexpr int64_t kDefaultMaxTokens = 256;

std::string read_prompt(const Options& options) {
  if (options.prompt.has_value() == !options.prompt_file.empty()) {
    throw Error(ExitCode::kUsage, "generate needs one of --prompt TEXT and --prompt-file FILE");
  }
  if (options.prompt) return *options.prompt;
  if (options.prompt_file != "-") {
    return read_file(options.prompt_file, kMaxPromptBytes, ExitCode::kInput);
  }
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

ApiCall make_call(const Options& options, const std::string& prompt, const ModelContext& model) {
  boost::json::object body = call_body(options, model);
  if (!body.contains("max_tokens")) body["max_tokens"] = kDefaultMaxTokens;
  if (options.json) body["return_token_ids"] = true;
  if (!options.chat) {
    body["prompt"] = prompt;
    if (options.logprobs) body["logprobs"] = *options.logprobs;
    return parse_call(ApiKind::kCompletion, body, model);
  }
  body["messages"] = {{{"role", "user"}, {"content", prompt}}};
  if (options.logprobs) {
    body["logprobs"] = true;
    body["top_logprobs"] = *options.logprobs;
  }
  return parse_call(ApiKind::kChat, body, model);
}

}  // namespace

ExitCode run_generate(const Options& options) {
  const std::string prompt = read_prompt(options);
  if (options.logprobs && !options.json) {
    throw Error(ExitCode::kUsage, "--logprobs has a place in --json only: give both");
  }
  Session session(options, Session::Text::kNeeded);
  const ApiCall call = make_call(options, prompt, session.model());
  const Answer answer = ask(session, call, [&](std::string_view text) {
    if (!options.json) write_stdout(text);
  });
  if (options.json) {
    const ResponseWriter writer(
        call, session.model(), options.chat ? "chatcmpl-1" : "cmpl-1", std::time(nullptr));
    write_stdout(writer.response({answer.piece}, answer.num_tokens) + "\n");
  } else if (isatty(STDOUT_FILENO) && !launched_by_mpi()) {  // mpirun's is one for each rank
    write_stdout("\n");
  }
  log::info("{}", answer.speed());
  return ExitCode::kOk;
}

}  // namespace millrace
