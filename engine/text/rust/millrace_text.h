/* The C interface of the Rust library: tokenizers and chat templates. Text and JSON are UTF-8.
 * Handles are immutable and safe from any thread. No function lets a panic out: it becomes an
 * error. Functions that return bool fill `*error` when they return false and leave the other
 * outputs alone; every buffer that was filled goes back to mr_buffer_free. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes lent for the call, or by a handle for as long as it lives. */
typedef struct mr_bytes {
  const uint8_t* data;
  size_t size;
} mr_bytes;

/* Bytes owned by the library. Start from {0}. */
typedef struct mr_buffer {
  uint8_t* data;
  size_t size;
} mr_buffer;
void mr_buffer_free(mr_buffer buffer);

typedef struct mr_tokenizer mr_tokenizer;
bool mr_tokenizer_new(mr_bytes json, mr_tokenizer** tokenizer, mr_buffer* error);
void mr_tokenizer_free(mr_tokenizer* tokenizer);
/* `ids`: the ids as int32, in the machine's byte order. */
bool mr_tokenizer_encode(const mr_tokenizer* tokenizer, mr_bytes text, bool add_special,
    mr_buffer* ids, mr_buffer* error);
/* One more than the largest id. */
int32_t mr_tokenizer_vocab_size(const mr_tokenizer* tokenizer);
/* The same without the added tokens. */
int32_t mr_tokenizer_ordinary_size(const mr_tokenizer* tokenizer);
/* Spaces the decoder takes off the start of a text (SentencePiece puts one there). */
int32_t mr_tokenizer_leading_spaces(const mr_tokenizer* tokenizer);
/* What an id adds to a text, lent by the tokenizer. */
typedef struct mr_piece {
  mr_bytes bytes;
  mr_bytes first; /* the same, where the id is the first that is not skipped */
  bool special;
  bool fallback; /* a byte of a character that the vocabulary lacks, as SentencePiece writes it */
} mr_piece;
/* False when there is no such id. */
bool mr_tokenizer_piece(const mr_tokenizer* tokenizer, int32_t id, mr_piece* piece);

/* Writes `bytes` as UTF-8 to `*text`, each invalid sequence as U+FFFD, and returns how many bytes
 * that took: unless `last`, the start of an unfinished character at the end is left. */
size_t mr_utf8_lossy(mr_bytes bytes, bool last, mr_buffer* text);

typedef struct mr_template mr_template;
bool mr_template_new(
    mr_bytes source, mr_bytes bos, mr_bytes eos, mr_template** chat_template, mr_buffer* error);
void mr_template_free(mr_template* chat_template);
/* `messages`: a JSON array of objects; `extra`: a JSON object of further variables. */
bool mr_template_render(const mr_template* chat_template, mr_bytes messages, mr_bytes extra,
    bool add_generation_prompt, mr_buffer* text, mr_buffer* error);

#ifdef __cplusplus
} /* extern "C" */
#endif
