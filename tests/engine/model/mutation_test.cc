// Ten thousand damaged copies of each kind of file: refused with an Error or read soundly, never
// anything else (run under ASan and UBSan in CI).
#include <fmt/format.h>

#include <random>

#include "engine/model/checkpoint.h"
#include "engine/model/stored_model.h"
#include "tests/engine/model/files.h"
#include "tests/engine/model/gguf_builder.h"

namespace millrace {
namespace {

constexpr int kRounds = 10'000;

// Changes 1 to 4 bytes among the first `limit`: a random one, a flipped bit, or an edge value.
std::string damaged(const std::string& whole, size_t limit, std::mt19937& random) {
  std::string bytes = whole;
  const int changes = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < changes; ++i) {
    char& byte = bytes[random() % limit];
    const uint32_t how = random() % 3;
    if (how == 0) byte = static_cast<char>(random());
    if (how == 1) byte = static_cast<char>(byte ^ (1 << (random() % 8)));
    if (how == 2) byte = "\x00\xff\x7f\x80"[random() % 4];
  }
  return bytes;
}

// How many of the copies were refused.
int refusals(
    const std::string& whole, size_t limit, const std::function<void(const std::string&)>& body) {
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < kRounds; ++round) {
    const std::string bytes = damaged(whole, limit, random);
    try {
      body(bytes);
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), ExitCode::kModel) << error.what();
      ++refused;
    }
  }
  return refused;
}

TEST(Mutation, Safetensors) {
  const TempDir dir;
  const std::string path = dir / "model.safetensors";
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]}})";
  const int refused =
      refusals(safetensors_bytes(header, 20), 8 + header.size(), [&](const std::string& bytes) {
        write_file(path, bytes);
        const File file(path, ExitCode::kModel);
        for (const auto& [name, tensor] : read_safetensors(file, 0)) {
          EXPECT_LE(tensor.offset + tensor.bytes, file.size());
        }
      });
  EXPECT_GT(refused, kRounds / 2);
  EXPECT_LT(refused, kRounds);
}

TEST(Mutation, Gguf) {
  const TempDir dir;
  const std::string path = dir / "m.gguf";
  GgufBuilder builder = small_llama();
  const std::string whole = builder.build();
  const int refused = refusals(whole, builder.header_bytes(), [&](const std::string& bytes) {
    write_file(path, bytes);
    const auto checkpoint = open_checkpoint(path);
    std::vector<uint8_t> row(32 * 4);
    checkpoint->read("model.embed_tokens.weight", {3, 1}, {0, 32}, row.data());
  });
  EXPECT_GT(refused, kRounds / 2);
  EXPECT_LT(refused, kRounds);
}

TEST(Mutation, Config) {
  for (const char* model : {"tiny-llama-tied", "tiny-gemma3", "tiny-phi3", "tiny-smollm3"}) {
    const std::string whole = read_all(fmt::format("tests/data/{}/config.json", model));
    const int refused = refusals(whole, whole.size(), [&](const std::string& bytes) {
      const ModelConfig config = parse_hf_config(bytes, "", "m");
      EXPECT_LE(config.num_layers, ConfigLimits::kLayers);
      EXPECT_EQ(config.layers.size(), static_cast<size_t>(config.num_layers));
      EXPECT_EQ(config.num_heads % config.num_kv_heads, 0);
      EXPECT_LE(config.rope.dim, config.head_dim);
    });
    EXPECT_GT(refused, kRounds / 4) << model;
    EXPECT_LT(refused, kRounds) << model;
  }
}

}  // namespace
}  // namespace millrace
