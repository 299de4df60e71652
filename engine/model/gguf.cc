#include "engine/model/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/value.hpp>
#include <cstring>
#include <filesystem>
#include <iterator>

#include "engine/base/bytes.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

namespace json = boost::json;

constexpr uint64_t kMaxHeader = 128 << 20;  // bytes of metadata and tensor list
constexpr uint64_t kMaxString = 16 << 20;
constexpr uint64_t kMaxName = 512;
constexpr uint64_t kMaxElements = 16'000'000;  // of all arrays: a vocabulary, its merges
constexpr uint64_t kMaxPairs = 65'536;
constexpr uint64_t kMaxTensors = 1'000'000;
constexpr uint32_t kMaxDims = 4;
constexpr int64_t kMaxParts = 65'535;  // of a split model; the key has 16 bits

// Types of metadata values, as numbered by the format.
enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kNumTypes
};
constexpr std::array<uint64_t, kNumTypes> kSmallest = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};

// Types of tensors, by the format's number; empty: a number not in use.
constexpr std::string_view kTensorTypes[] = {"F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1",
    "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS",
    "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M",
    "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4"};
static_assert(kTensorTypes[30] == "BF16" && kTensorTypes[39] == "MXFP4");

// Reads forward through the head of the file, a chunk at a time.
class Cursor {
 public:
  explicit Cursor(const File& file) : file_(file), end_(std::min(file.size(), kMaxHeader)) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return end_ - position_; }
  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error(ExitCode::kModel,
        "'{}' is not a sound GGUF file: {} (near byte {}); download it again", file_.path(),
        fmt::format(format, std::forward<Args>(args)...), position_);
  }
  template <Scalar T>
  T get() {
    T value{};
    take(&value, sizeof(T));
    return value;
  }
  // A count of things of at least `smallest` bytes each, at most `max`.
  uint64_t count(uint64_t smallest, uint64_t max, std::string_view what) {
    const auto n = get<uint64_t>();
    if (n > max) fail("{} {} are more than the {} accepted", n, what, max);
    if (n > remaining() / smallest) fail("it ends before its {} {}", n, what);
    return n;
  }
  std::string string(uint64_t max) {
    std::string text(count(1, max, "bytes of a string"), '\0');
    take(text.data(), text.size());
    return text;
  }
  // A key or a tensor's name: printable ASCII, so that it can stand in a message.
  std::string name() {
    std::string text = string(kMaxName);
    const bool printable = std::ranges::all_of(text, [](char c) { return c > ' ' && c < 127; });
    if (text.empty() || !printable) fail("a name is empty or not printable");
    return text;
  }

 private:
  void take(void* to, size_t size) {
    if (size > remaining()) fail("it ends too early");
    if (position_ < chunk_begin_ || position_ + size > chunk_begin_ + chunk_.size()) {
      chunk_begin_ = position_;
      chunk_.resize(std::min<uint64_t>(remaining(), std::max<uint64_t>(size, 256 << 10)));
      file_.read_at(chunk_begin_, chunk_);
    }
    if (size > 0) std::memcpy(to, chunk_.data() + (position_ - chunk_begin_), size);
    position_ += size;
  }

  const File& file_;
  uint64_t end_;
  uint64_t position_ = 0;
  uint64_t chunk_begin_ = 0;
  Bytes chunk_;
};

json::value read_scalar(Cursor& in, uint32_t type) {
  switch (type) {
    case kU8: return in.get<uint8_t>();
    case kI8: return in.get<int8_t>();
    case kU16: return in.get<uint16_t>();
    case kI16: return in.get<int16_t>();
    case kU32: return in.get<uint32_t>();
    case kI32: return in.get<int32_t>();
    case kF32: return double{in.get<float>()};
    case kBool: return in.get<uint8_t>() != 0;
    case kString: return json::string(in.string(kMaxString));
    case kU64: return in.get<uint64_t>();
    case kI64: return in.get<int64_t>();
    case kF64: return in.get<double>();
    default: in.fail("a value of the unknown type {}", type);
  }
}

json::value read_value(Cursor& in, uint64_t& elements_left) {
  const auto type = in.get<uint32_t>();
  if (type != kArray) return read_scalar(in, type);
  const auto element = in.get<uint32_t>();
  if (element >= kNumTypes || element == kArray) {
    in.fail("an array of the type {}, which is unknown or an array itself", element);
  }
  const uint64_t n = in.count(kSmallest[element], elements_left, "elements of an array");
  elements_left -= n;
  json::array array;
  array.reserve(n);
  for (uint64_t i = 0; i < n; ++i) array.push_back(read_scalar(in, element));
  return array;
}

// One entry of the tensor list; `offset` is still relative to the data section.
StoredTensor read_tensor_info(Cursor& in, const std::string& name) {
  StoredTensor tensor;
  const auto dims = in.get<uint32_t>();
  if (dims < 1 || dims > kMaxDims) in.fail("'{}' has {} dimensions", name, dims);
  tensor.info.shape.resize(dims);
  for (uint32_t i = 0; i < dims; ++i) {
    const auto size = in.get<uint64_t>();
    if (size > INT64_MAX) in.fail("'{}' is too large", name);
    tensor.info.shape[dims - 1 - i] = static_cast<int64_t>(size);
  }
  if (checked_count(tensor.info.shape) <= 0) in.fail("'{}' has no valid size", name);
  const auto type = in.get<uint32_t>();
  if (type < std::size(kTensorTypes)) tensor.type_name = kTensorTypes[type];
  if (tensor.type_name.empty()) tensor.type_name = fmt::format("GGUF type {}", type);
  const auto dtype = readable_dtype(tensor.type_name);
  tensor.readable = dtype.has_value();
  if (!tensor.readable && !tensor.type_name.starts_with("GGUF")) {
    tensor.type_name += fmt::format(" (GGUF type {})", type);
  }
  tensor.info.dtype = dtype.value_or(DType::kF32);
  tensor.offset = in.get<uint64_t>();
  return tensor;
}

// Turns offsets into file offsets and holds every range against the file and its neighbours.
void place_tensors(GgufFile& gguf, const Cursor& in, uint64_t alignment) {
  const uint64_t file_size = gguf.files[0].size();
  const uint64_t data = (in.position() + alignment - 1) / alignment * alignment;
  struct Placed {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Placed> placed;
  for (auto& [name, tensor] : gguf.tensors) {
    if (!tensor.readable) continue;
    const DTypeInfo type = dtype_info(tensor.info.dtype);
    const int64_t count = checked_count(tensor.info.shape);
    if (tensor.info.shape.back() % type.block_size != 0) {
      in.fail("rows of '{}' are not whole {} blocks", name, type.name);
    }
    const auto blocks = static_cast<uint64_t>(count / type.block_size);
    if (tensor.offset % alignment != 0) in.fail("'{}' is not aligned", name);
    if (data > file_size || tensor.offset > file_size - data ||
        blocks > (file_size - data - tensor.offset) / static_cast<uint64_t>(type.block_bytes)) {
      throw Error(ExitCode::kModel,
          "'{}' ends before its tensor '{}': the file is torn; copy or download it again",
          gguf.files[0].path(), name);
    }
    tensor.offset += data;
    tensor.bytes = blocks * static_cast<uint64_t>(type.block_bytes);
    placed.push_back({tensor.offset, tensor.offset + tensor.bytes, &name});
  }
  std::ranges::sort(placed, {}, &Placed::begin);
  for (size_t i = 1; i < placed.size(); ++i) {
    if (placed[i].begin < placed[i - 1].end) {
      in.fail("'{}' and '{}' overlap", *placed[i - 1].name, *placed[i].name);
    }
  }
}

void check_version(Cursor& in) {
  const auto magic = in.get<uint32_t>();
  if (magic != 0x46554747) in.fail("it does not begin with 'GGUF'");  // read as little-endian
  const auto version = in.get<uint32_t>();
  if ((version & 0xffff) == 0) in.fail("it was written for a big-endian machine");
  if (version != 2 && version != 3) {
    in.fail("it has the format version {}; versions 2 and 3 are known", version);
  }
}

GgufFile read_part(const std::string& path) {
  GgufFile gguf;
  gguf.files.emplace_back(path, ExitCode::kModel);
  Cursor in(gguf.files[0]);
  check_version(in);
  const uint64_t num_tensors = in.count(/*smallest=*/32, kMaxTensors, "tensors");
  const uint64_t num_pairs = in.count(/*smallest=*/13, kMaxPairs, "metadata pairs");
  uint64_t elements_left = kMaxElements;
  for (uint64_t i = 0; i < num_pairs; ++i) {
    const std::string key = in.name();
    const bool fresh = gguf.metadata.emplace(key, read_value(in, elements_left)).second;
    if (!fresh) in.fail("the key '{}' is given twice", key);
  }
  const int64_t alignment = gguf.fields().integer("general.alignment", 1, 1 << 20).value_or(32);
  if ((alignment & (alignment - 1)) != 0) {
    in.fail("its alignment {} is not a power of two", alignment);
  }
  for (uint64_t i = 0; i < num_tensors; ++i) {
    std::string name = in.name();
    StoredTensor tensor = read_tensor_info(in, name);
    const auto [entry, fresh] = gguf.tensors.emplace(std::move(name), std::move(tensor));
    if (!fresh) in.fail("the tensor '{}' is listed twice", entry->first);
  }
  place_tensors(gguf, in, static_cast<uint64_t>(alignment));
  return gguf;
}

// The path of part `no` (from 0) of `count` that lies beside the first.
std::string part_path(const JsonFields& first, const std::string& path, int64_t no, int64_t count) {
  const auto ending = [count](int64_t part) {
    return fmt::format("-{:05}-of-{:05}.gguf", part + 1, count);
  };
  if (!path.ends_with(ending(0))) {
    first.fail("it is the first of {} parts, but its name does not end in {}; rename it", count,
        ending(0));
  }
  std::string part = path.substr(0, path.size() - ending(0).size()) + ending(no);
  namespace fs = std::filesystem;
  std::error_code code;
  if (!fs::exists(part, code)) first.fail("its part '{}' is missing; download it", part);
  // A link is followed where the first part's goes (Hugging Face's cache), and nowhere else.
  if (fs::canonical(part, code).parent_path() != fs::canonical(path, code).parent_path()) {
    first.fail(
        "its part '{}' is a link that leaves the model's folder; put the file itself there", part);
  }
  return part;
}

void add_part(GgufFile& gguf, const std::string& path, int64_t no, int64_t count) {
  GgufFile part = read_part(path);
  if (part.fields().integer("split.no", 0, kMaxParts) != no ||
      part.fields().integer("split.count", 0, kMaxParts) != count) {
    part.fields().fail(
        "it is not part {} of {} ('split.no', 'split.count'); download it again", no + 1, count);
  }
  for (auto& [name, tensor] : part.tensors) {
    tensor.file = static_cast<size_t>(no);
    const auto [entry, fresh] = gguf.tensors.emplace(name, std::move(tensor));
    if (!fresh) {
      part.fields().fail("its tensor '{}' is also in '{}'; download them again", name,
          gguf.files[entry->second.file].path());
    }
  }
  gguf.files.push_back(std::move(part.files[0]));
}

}  // namespace

GgufFile read_gguf(const std::string& path) {
  GgufFile gguf = read_part(path);
  const JsonFields fields = gguf.fields();
  const int64_t count = fields.integer("split.count", 0, kMaxParts).value_or(0);
  const int64_t no = fields.integer("split.no", 0, kMaxParts).value_or(0);
  if (no != 0) {
    fields.fail("it is part {} of {} of a split model; give the first part", no + 1, count);
  }
  for (int64_t i = 1; i < count; ++i) {
    add_part(gguf, part_path(fields, path, i, count), i, count);
  }
  const auto total = fields.integer("split.tensors.count", 0, kMaxTensors);
  if (total && *total != static_cast<int64_t>(gguf.tensors.size())) {
    fields.fail(
        "'split.tensors.count' is {}, but its {} files have {} tensors: they do not belong "
        "together; download the model again",
        *total, gguf.files.size(), gguf.tensors.size());
  }
  return gguf;
}

}  // namespace millrace
