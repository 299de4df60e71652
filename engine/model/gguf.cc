#include "engine/model/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "engine/base/bytes.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxHeader = 128 << 20;  // bytes of metadata and tensor list
constexpr uint64_t kMaxString = 16 << 20;
constexpr uint64_t kMaxName = 512;
constexpr uint64_t kMaxElements = 4'000'000;  // of one array: a vocabulary, its merges
constexpr uint64_t kMaxPairs = 65'536;
constexpr uint64_t kMaxTensors = 1'000'000;
constexpr uint32_t kMaxDims = 4;

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

struct TensorType {
  uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;  // none: no kernels
};
constexpr std::array kTensorTypes = {
    TensorType{0, "F32", DType::kF32},
    TensorType{1, "F16", DType::kF16},
    TensorType{2, "Q4_0", DType::kQ4_0},
    TensorType{3, "Q4_1", DType::kQ4_1},
    TensorType{6, "Q5_0", std::nullopt},
    TensorType{7, "Q5_1", std::nullopt},
    TensorType{8, "Q8_0", DType::kQ8_0},
    TensorType{9, "Q8_1", std::nullopt},
    TensorType{10, "Q2_K", std::nullopt},
    TensorType{11, "Q3_K", std::nullopt},
    TensorType{12, "Q4_K", std::nullopt},
    TensorType{13, "Q5_K", std::nullopt},
    TensorType{14, "Q6_K", std::nullopt},
    TensorType{15, "Q8_K", std::nullopt},
    TensorType{16, "IQ2_XXS", std::nullopt},
    TensorType{17, "IQ2_XS", std::nullopt},
    TensorType{18, "IQ3_XXS", std::nullopt},
    TensorType{19, "IQ1_S", std::nullopt},
    TensorType{20, "IQ4_NL", std::nullopt},
    TensorType{21, "IQ3_S", std::nullopt},
    TensorType{22, "IQ2_S", std::nullopt},
    TensorType{23, "IQ4_XS", std::nullopt},
    TensorType{24, "I8", std::nullopt},
    TensorType{25, "I16", std::nullopt},
    TensorType{26, "I32", std::nullopt},
    TensorType{27, "I64", std::nullopt},
    TensorType{28, "F64", std::nullopt},
    TensorType{29, "IQ1_M", std::nullopt},
    TensorType{30, "BF16", DType::kBF16},
    TensorType{34, "TQ1_0", std::nullopt},
    TensorType{35, "TQ2_0", std::nullopt},
    TensorType{39, "MXFP4", std::nullopt},
};

// Reads forward through the head of the file, a chunk at a time.
class Cursor {
 public:
  explicit Cursor(const File& file) : file_(file), end_(std::min(file.size(), kMaxHeader)) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return end_ - position_; }
  [[noreturn]] void fail(const std::string& message) const {
    throw Error(ExitCode::kModel,
        fmt::format("'{}' is not a sound GGUF file: {} (near byte {}); download it again",
            file_.path(), message, position_));
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
    if (n > max) fail(fmt::format("{} {} are more than the {} accepted", n, what, max));
    if (n > remaining() / smallest) fail(fmt::format("it ends before its {} {}", n, what));
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

GgufValue read_scalar(Cursor& in, uint32_t type) {
  switch (type) {
    case kU8: return uint64_t{in.get<uint8_t>()};
    case kI8: return int64_t{in.get<int8_t>()};
    case kU16: return uint64_t{in.get<uint16_t>()};
    case kI16: return int64_t{in.get<int16_t>()};
    case kU32: return uint64_t{in.get<uint32_t>()};
    case kI32: return int64_t{in.get<int32_t>()};
    case kF32: return double{in.get<float>()};
    case kBool: return in.get<uint8_t>() != 0;
    case kString: return in.string(kMaxString);
    case kU64: return in.get<uint64_t>();
    case kI64: return in.get<int64_t>();
    case kF64: return in.get<double>();
    default: in.fail(fmt::format("a value of the unknown type {}", type));
  }
}

double as_number(const GgufValue& value) {
  if (const auto* i = std::get_if<int64_t>(&value)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<uint64_t>(&value)) return static_cast<double>(*u);
  if (const auto* d = std::get_if<double>(&value)) return *d;
  if (const auto* b = std::get_if<bool>(&value)) return *b ? 1 : 0;
  return std::nan("");
}

GgufValue read_value(Cursor& in) {
  const auto type = in.get<uint32_t>();
  if (type != kArray) return read_scalar(in, type);
  const auto element = in.get<uint32_t>();
  if (element >= kNumTypes || element == kArray) {
    in.fail(fmt::format("an array of the type {}, which is unknown or an array itself", element));
  }
  const uint64_t n = in.count(kSmallest[element], kMaxElements, "elements of an array");
  if (element == kString) {
    GgufStrings strings(n);
    for (std::string& s : strings) s = in.string(kMaxString);
    return strings;
  }
  GgufNumbers numbers(n);
  for (double& x : numbers) x = as_number(read_scalar(in, element));
  return numbers;
}

// One entry of the tensor list; `offset` is still relative to the data section.
StoredTensor read_tensor_info(Cursor& in, const std::string& name) {
  StoredTensor tensor;
  const auto dims = in.get<uint32_t>();
  if (dims < 1 || dims > kMaxDims) in.fail(fmt::format("'{}' has {} dimensions", name, dims));
  tensor.info.shape.resize(dims);
  for (uint32_t i = 0; i < dims; ++i) {
    const auto size = in.get<uint64_t>();
    if (size > INT64_MAX) in.fail(fmt::format("'{}' is too large", name));
    tensor.info.shape[dims - 1 - i] = static_cast<int64_t>(size);
  }
  if (checked_count(tensor.info.shape) <= 0) in.fail(fmt::format("'{}' has no valid size", name));
  const auto type = in.get<uint32_t>();
  const auto* known = std::ranges::find(kTensorTypes, type, &TensorType::id);
  tensor.type_name =
      known != kTensorTypes.end() ? std::string(known->name) : fmt::format("GGUF type {}", type);
  if (known != kTensorTypes.end() && known->dtype) {
    tensor.readable = true;
    tensor.info.dtype = *known->dtype;
  }
  tensor.offset = in.get<uint64_t>();
  return tensor;
}

// Turns offsets into file offsets and holds every range against the file and its neighbours.
void place_tensors(GgufFile& gguf, const Cursor& in, uint64_t alignment) {
  const uint64_t file_size = gguf.file.size();
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
      in.fail(fmt::format("rows of '{}' are not whole {} blocks", name, type.name));
    }
    const auto blocks = static_cast<uint64_t>(count / type.block_size);
    if (tensor.offset % alignment != 0) in.fail(fmt::format("'{}' is not aligned", name));
    if (data > file_size || tensor.offset > file_size - data ||
        blocks > (file_size - data - tensor.offset) / static_cast<uint64_t>(type.block_bytes)) {
      throw Error(ExitCode::kModel,
          fmt::format("'{}' ends before its tensor '{}': the file is torn; copy or "
                      "download it again",
              gguf.file.path(), name));
    }
    tensor.offset += data;
    tensor.bytes = blocks * static_cast<uint64_t>(type.block_bytes);
    placed.push_back({tensor.offset, tensor.offset + tensor.bytes, &name});
  }
  std::ranges::sort(placed, {}, &Placed::begin);
  for (size_t i = 1; i < placed.size(); ++i) {
    if (placed[i].begin < placed[i - 1].end) {
      in.fail(fmt::format("'{}' and '{}' overlap", *placed[i - 1].name, *placed[i].name));
    }
  }
}

void check_version(Cursor& in) {
  const auto magic = in.get<uint32_t>();
  if (magic != 0x46554747) in.fail("it does not begin with 'GGUF'");  // read as little-endian
  const auto version = in.get<uint32_t>();
  if ((version & 0xffff) == 0) in.fail("it was written for a big-endian machine");
  if (version != 2 && version != 3) {
    in.fail(fmt::format("it has the format version {}; versions 2 and 3 are known", version));
  }
}

}  // namespace

GgufFile read_gguf(const std::string& path) {
  GgufFile gguf{File(path, ExitCode::kModel), GgufMetadata(path), {}};
  Cursor in(gguf.file);
  check_version(in);
  const uint64_t num_tensors = in.count(/*smallest=*/32, kMaxTensors, "tensors");
  const uint64_t num_pairs = in.count(/*smallest=*/13, kMaxPairs, "metadata pairs");
  for (uint64_t i = 0; i < num_pairs; ++i) {
    std::string key = in.name();
    GgufValue value = read_value(in);
    if (!gguf.metadata.add(key, std::move(value))) {
      in.fail(fmt::format("the key '{}' is given twice", key));
    }
  }
  const int64_t alignment = gguf.metadata.integer("general.alignment", 1, 1 << 20).value_or(32);
  if ((alignment & (alignment - 1)) != 0) {
    in.fail(fmt::format("its alignment {} is not a power of two", alignment));
  }
  for (uint64_t i = 0; i < num_tensors; ++i) {
    std::string name = in.name();
    StoredTensor tensor = read_tensor_info(in, name);
    const auto [entry, fresh] = gguf.tensors.emplace(std::move(name), std::move(tensor));
    if (!fresh) in.fail(fmt::format("the tensor '{}' is listed twice", entry->first));
  }
  place_tensors(gguf, in, static_cast<uint64_t>(alignment));
  return gguf;
}

bool GgufMetadata::add(std::string key, GgufValue value) {
  return values_.emplace(std::move(key), std::move(value)).second;
}

const GgufValue* GgufMetadata::find(const std::string& key) const {
  const auto found = values_.find(key);
  return found != values_.end() ? &found->second : nullptr;
}

void GgufMetadata::fail(const std::string& message) const {
  throw Error(ExitCode::kModel, fmt::format("'{}': {}", path_, message));
}

template <typename T>
const T* GgufMetadata::as(const std::string& key, std::string_view type) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return nullptr;
  const T* held = std::get_if<T>(value);
  if (held == nullptr) fail(fmt::format("the metadata key '{}' is not {}", key, type));
  return held;
}

std::optional<int64_t> GgufMetadata::integer(
    const std::string& key, int64_t min, int64_t max) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  int64_t number = 0;
  bool ok = false;
  if (const auto* i = std::get_if<int64_t>(value)) {
    number = *i;
    ok = true;
  } else if (const auto* u = std::get_if<uint64_t>(value)) {
    number = static_cast<int64_t>(*u);
    ok = *u <= INT64_MAX;
  }
  if (!ok || number < min || number > max) {
    fail(fmt::format("the metadata key '{}' is not an integer from {} to {}", key, min, max));
  }
  return number;
}

std::optional<double> GgufMetadata::number(const std::string& key, double min, double max) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  const double number = std::holds_alternative<bool>(*value) ? std::nan("") : as_number(*value);
  if (!(number >= min && number <= max)) {
    fail(fmt::format("the metadata key '{}' is not a number from {} to {}", key, min, max));
  }
  return number;
}

std::optional<bool> GgufMetadata::boolean(const std::string& key) const {
  const bool* held = as<bool>(key, "a boolean");
  return held != nullptr ? std::optional(*held) : std::nullopt;
}

std::optional<std::string> GgufMetadata::text(const std::string& key) const {
  const auto* held = as<std::string>(key, "a string");
  return held != nullptr ? std::optional(*held) : std::nullopt;
}

const GgufStrings* GgufMetadata::strings(const std::string& key) const {
  return as<GgufStrings>(key, "an array of strings");
}

const GgufNumbers* GgufMetadata::numbers(const std::string& key) const {
  return as<GgufNumbers>(key, "an array of numbers");
}

}  // namespace millrace
