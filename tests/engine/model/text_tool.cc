// The tokenizers and templates as a filter, for tests/oracle: one request a line, one answer a
// line. Bytes travel as hexadecimal digits; "!" before an answer: refused, with the message.
//
//     text_tool FILE     FILE: tokenizer.json or a GGUF file with a vocabulary
//       e TEXT           ids with special tokens, "|", ids without
//       d IDS            text, "|", text without special tokens; "streamed differently" if it was
//     text_tool          no tokenizer, only:
//       t TEMPLATE MESSAGES VARIABLES     the text, with a generation prompt
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "engine/base/status.h"
#include "engine/model/gguf.h"
#include "engine/model/stored_model.h"
#include "engine/text/text.h"

namespace millrace {
namespace {

constexpr int32_t kVocab = 1 << 20;

std::string to_hex(std::string_view bytes) {
  std::string hex;
  for (const char c : bytes) hex += fmt::format("{:02x}", static_cast<uint8_t>(c));
  return hex;
}

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    int byte = 0;
    std::from_chars(hex.data() + i, hex.data() + i + 2, byte, 16);
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

std::shared_ptr<const Tokenizer> open(const std::string& path) {
  if (path.ends_with(".gguf")) {
    return Tokenizer::from_json(make_tokenizer_json(read_gguf(path).fields(), kVocab));
  }
  std::ifstream file(path, std::ios::binary);
  return Tokenizer::from_json(std::string(std::istreambuf_iterator<char>(file), {}));
}

std::string encode(const Tokenizer& tokenizer, const std::string& text) {
  return fmt::format("{}|{}", fmt::join(tokenizer.encode(text, /*add_special=*/true), " "),
      fmt::join(tokenizer.encode(text, /*add_special=*/false), " "));
}

std::string decode(const std::shared_ptr<const Tokenizer>& tokenizer, std::istream& in) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; in >> id;) ids.push_back(id);
  std::string answer;
  for (const bool skip : {false, true}) {
    const std::string whole = tokenizer->decode(ids, skip);
    Detokenizer stream(tokenizer, {}, skip);
    std::string text;
    for (const int32_t id : ids) text += stream.push(id);
    text += stream.finish();
    if (text != whole) return "streamed differently";
    if (skip) answer += '|';
    answer += to_hex(whole);
  }
  return answer;
}

std::string render(std::istream& in) {
  std::string source, messages, variables;
  in >> source >> messages >> variables;
  return to_hex(ChatTemplate::parse(from_hex(source), "<s>", "</s>")
                    ->render(from_hex(messages), from_hex(variables),
                        /*add_generation_prompt=*/true));
}

std::string answer(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& line) {
  std::istringstream in(line);
  std::string verb, argument;
  in >> verb;
  if (verb == "t") return render(in);
  if (verb == "d") return decode(tokenizer, in);
  in >> argument;
  return encode(*tokenizer, from_hex(argument));
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  std::ios::sync_with_stdio(false);
  std::shared_ptr<const millrace::Tokenizer> tokenizer;
  try {
    if (argc > 1) tokenizer = millrace::open(argv[1]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << millrace::answer(tokenizer, line) << '\n';
    } catch (const std::exception& error) {
      std::cout << '!' << millrace::to_hex(error.what()) << '\n';
    }
  }
}
