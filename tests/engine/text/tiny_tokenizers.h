// Two tokenizers small enough to know by heart, as tokenizer.json.
#pragma once

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdint>
#include <string>

namespace millrace {

inline std::string utf8(uint32_t c) {  // below U+10000
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  std::string tail(1, static_cast<char>(0x80 | (c & 0x3f)));
  if (c < 0x800) return static_cast<char>(0xc0 | (c >> 6)) + tail;
  return static_cast<char>(0xe0 | (c >> 12)) + (static_cast<char>(0x80 | ((c >> 6) & 0x3f)) + tail);
}

inline boost::json::object added_token(int id, const char* content, bool special) {
  return {{"id", id}, {"content", content}, {"single_word", false}, {"lstrip", false},
      {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// Byte-level BPE with GPT-2's pattern and single digits, as SmolLM2. Ids 0 to 255 are the bytes of
// their own value; 256 "he", 257 "ll", 258 "hell", 259 " w"; 260 <|im_start|> and 261 <|im_end|>
// are special, 262 <tool> is not; 263 is a hole; 264 "<｜end｜>" is special.
inline boost::json::object byte_level_tokenizer() {
  boost::json::object vocab;
  uint32_t stand_in = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    vocab[utf8(printable ? byte : stand_in++)] = byte;
  }
  vocab["he"] = 256;
  vocab["ll"] = 257;
  vocab["hell"] = 258;
  vocab["\u0120w"] = 259;
  vocab["<|im_start|>"] = 260;
  vocab["<|im_end|>"] = 261;
  vocab["<tool>"] = 262;
  vocab["<\uFF5Cend\uFF5C>"] = 264;
  const auto byte_level = [](bool use_regex) {
    return boost::json::object{{"type", "ByteLevel"}, {"add_prefix_space", false},
        {"trim_offsets", true}, {"use_regex", use_regex}};
  };
  const boost::json::object digits = {{"type", "Digits"}, {"individual_digits", true}};
  const boost::json::array merges = {"h e", "l l", "he ll", "\u0120 w"};
  return {{"version", "1.0"},
      {"truncation",
          {{"direction", "Right"}, {"max_length", 4}, {"stride", 0}, {"strategy", "LongestFirst"}}},
      {"added_tokens",
          {added_token(260, "<|im_start|>", true), added_token(261, "<|im_end|>", true),
              added_token(262, "<tool>", false), added_token(264, "<\uFF5Cend\uFF5C>", true)}},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {digits, byte_level(true)}}}},
      {"decoder", byte_level(true)},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

// SentencePiece's BPE with byte fallback, as Llama 2: 0 <unk>, 1 <s>, 2 </s>, 3 to 258 the bytes,
// 259 "▁", 260 "▁a", 261 "a", 262 "b", 263 "▁▁". <s> stands before every text.
inline boost::json::object sentence_piece_tokenizer() {
  boost::json::object vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) vocab[fmt::format("<0x{:02X}>", byte)] = 3 + byte;
  const char* pieces[] = {"\u2581", "\u2581a", "a", "b", "\u2581\u2581"};
  for (int i = 0; i < 5; ++i) vocab[pieces[i]] = 259 + i;
  const auto replace = [](const char* from, const char* to) {
    return boost::json::object{
        {"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
  };
  const boost::json::object prepend = {{"type", "Prepend"}, {"prepend", "\u2581"}};
  const boost::json::object fallback = {{"type", "ByteFallback"}};
  const boost::json::object fuse = {{"type", "Fuse"}};
  const boost::json::object strip = {
      {"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}};
  const boost::json::object bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const boost::json::object text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const boost::json::object bos_entry = {
      {"id", "<s>"}, {"ids", boost::json::array{1}}, {"tokens", boost::json::array{"<s>"}}};
  return {{"version", "1.0"},
      {"added_tokens", {added_token(0, "<unk>", true), added_token(1, "<s>", true),
                           added_token(2, "</s>", true)}},
      {"normalizer", {{"type", "Sequence"}, {"normalizers", {prepend, replace(" ", "\u2581")}}}},
      {"post_processor", {{"type", "TemplateProcessing"}, {"single", {bos, text}},
                             {"pair", {bos, text}}, {"special_tokens", {{"<s>", bos_entry}}}}},
      {"decoder",
          {{"type", "Sequence"}, {"decoders", {replace("\u2581", " "), fallback, fuse, strip}}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab},
                    {"merges", boost::json::array{"\u2581 a", "\u2581 \u2581"}},
                    {"unk_token", "<unk>"}, {"fuse_unk", true}, {"byte_fallback", true}}}};
}

}  // namespace millrace
