// The reader of .safetensors against the corpus of THREATS.md, section 5.
#include "engine/model/stored_model.h"

#include <fmt/format.h>

#include "tests/engine/model/files.h"

namespace millrace {
namespace {

class Safetensors : public testing::Test {
 protected:
  std::unordered_map<std::string, StoredTensor> read(std::string_view bytes) {
    const std::string path = dir_ / "model.safetensors";
    write_file(path, bytes);
    return read_safetensors(File(path, ExitCode::kModel), 3);
  }
  TempDir dir_;
};

TEST_F(Safetensors, ReadsTypesAndPlaces) {
  const std::string header = R"( {"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},)"
                             R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                             R"("empty":{"dtype":"F16","shape":[0,7],"data_offsets":[20,20]},)"
                             R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[20,28]},)"
                             R"("__metadata__":{"format":"pt"}})"
                             "\t\r\n ";
  const auto tensors = read(safetensors_bytes(header, 28));
  ASSERT_EQ(tensors.size(), 4u);
  const StoredTensor& b = tensors.at("b");
  EXPECT_EQ(b.info.dtype, DType::kBF16);
  EXPECT_EQ(b.info.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.offset, 8 + header.size() + 8);
  EXPECT_EQ(b.bytes, 12u);
  EXPECT_EQ(b.file, 3u);
  EXPECT_TRUE(b.readable);
  EXPECT_FALSE(tensors.at("scalar").readable);
  EXPECT_EQ(tensors.at("empty").bytes, 0u);
}

struct Broken {
  std::string header;  // or the fields of one entry
  size_t data_bytes;
  const char* message;
};

const std::string kGood = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";

std::string entry(const std::string& name, const std::string& fields) {
  return fmt::format(R"("{}":{{{}}})", name, fields);
}

std::string braced(const std::string& entries) { return fmt::format("{{{}}}", entries); }

TEST_F(Safetensors, RefusesBrokenEntries) {
  for (const Broken& c : std::vector<Broken>{
           {R"("dtype":"F32","shape":[2],"data_offsets":[4,12])", 12, "leave a hole"},
           {R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", 8, "offsets are 8 to 0"},
           {R"("dtype":"F32","shape":[3],"data_offsets":[0,8])", 8, "takes 12 bytes"},
           {R"("dtype":"F33","shape":[2],"data_offsets":[0,8])", 8, "'F33' is unknown"},
           {R"("dtype":"f32","shape":[2],"data_offsets":[0,8])", 8, "'f32' is unknown"},
           {R"("dtype":32,"shape":[2],"data_offsets":[0,8])", 8, "not a string"},
           {R"("dtype":"F4","shape":[3],"data_offsets":[0,1])", 1, "whole bytes"},
           {R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])", 8, "not a size"},
           {R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])", 8, "not a size"},
           {R"("dtype":"F32","shape":[2e0],"data_offsets":[0,8])", 8, "not a size"},
           {R"("dtype":"F32","shape":[-0],"data_offsets":[0,0])", 0, "-0 is not an integer"},
           {R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])", 8, "not a size"},
           {R"("dtype":"F32","shape":2,"data_offsets":[0,8])", 8, "'shape'"},
           {R"("dtype":"F32","shape":[2],"data_offsets":[0,8,8])", 8, "'data_offsets'"},
           {R"("dtype":"F32","shape":[2])", 8, "'data_offsets'"},
           {R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8])", 8,
               "cannot be computed"},
           {R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,8])", 8,
               "cannot be computed"},
           {kGood + R"(,"extra":1)", 8, "'extra' is unknown"},
           {kGood, 9, "1 bytes follow its last tensor"},
           {kGood, 7, "it is torn"},
       }) {
    SCOPED_TRACE(c.header);
    const std::string header = braced(entry("a", c.header));
    expect_model_error([&] { read(safetensors_bytes(header, c.data_bytes)); }, c.message);
  }
}

TEST_F(Safetensors, RefusesBrokenHeaders) {
  std::string overlap;
  for (int i = 0; i < 10; ++i) overlap += entry(fmt::format("t{}", i), kGood) + ",";
  overlap.pop_back();
  for (const Broken& c : std::vector<Broken>{
           {braced(overlap), 8, "overlap"},
           {braced(entry("a", kGood) + "," + entry("a", kGood)), 8, "'a' is given twice"},
           {braced(entry("a\\u0000b", kGood)), 8, "not printable"},
           {braced(entry(std::string(513, 'n'), kGood)), 8, "not printable"},
           {R"({"a":[]})", 0, "not an object"},
           {R"({"__metadata__":{"n":1}})", 0, "more than strings"},
           {R"({"__metadata__":[]})", 0, "not an object"},
           {"[]", 0, "does not hold a JSON object"},
           {"", 0, "not valid JSON"},
           {"x{}", 0, "not valid JSON"},
           {"{}x", 0, "not valid JSON"},
           {std::string("{}\0", 3), 0, "not valid JSON"},
           {"{\"\xff\xfe\":1}", 0, "not valid JSON"},
           {"{}", 1, "1 bytes follow"},
       }) {
    SCOPED_TRACE(c.header.substr(0, 120));
    expect_model_error([&] { read(safetensors_bytes(c.header, c.data_bytes)); }, c.message);
  }
}

TEST_F(Safetensors, RefusesBadLengths) {
  const auto with_length = [](uint64_t length) {
    return std::string(reinterpret_cast<const char*>(&length), 8) + "{}";
  };
  expect_model_error([&] { read(""); }, "before its header");
  expect_model_error([&] { read("1234567"); }, "before its header");
  expect_model_error([&] { read(with_length(3)); }, "inside its header");
  expect_model_error([&] { read(with_length(UINT64_MAX)); }, "at most");
  expect_model_error([&] { read(with_length((16 << 20) + 1)); }, "at most");
}

TEST_F(Safetensors, TruncatedAtEveryHeaderByte) {
  const std::string whole = read_all("tests/data/tiny-llama-tied/model-00002-of-00002.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), sizeof(header));
  ASSERT_GT(header, 500u);
  EXPECT_EQ(read(whole).size(), 10u);
  for (size_t size = 0; size <= 8 + header; ++size) {
    model_error([&] { read(std::string_view(whole).substr(0, size)); });
  }
  expect_model_error([&] { read(std::string_view(whole).substr(0, whole.size() - 1)); }, "torn");
}

}  // namespace
}  // namespace millrace
