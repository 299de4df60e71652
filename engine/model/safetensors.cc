#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>

#include "engine/base/status.h"
#include "engine/model/json_fields.h"
#include "engine/model/stored_model.h"

namespace millrace {

namespace {

namespace json = boost::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 16 << 20;
constexpr size_t kMaxName = 512;
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxDims = 16;

struct FileType {
  std::string_view name;
  int bits;
};
constexpr FileType kTypes[] = {{"F32", 32}, {"F16", 16}, {"BF16", 16}, {"BOOL", 8}, {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8}, {"I8", 8}, {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16}, {"U16", 16}, {"I32", 32},
    {"U32", 32}, {"C64", 64}, {"F64", 64}, {"I64", 64}, {"U64", 64}};

template <typename... Args>
[[noreturn]] void fail(const File& file, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(ExitCode::kModel,
      "'{}' is not a sound safetensors file: {}; copy or download it again", file.path(),
      fmt::format(format, std::forward<Args>(args)...));
}

std::string read_header(const File& file) {
  uint64_t length = 0;
  if (file.size() < kLengthBytes) fail(file, "it ends before its header");
  file.read_at(0, {reinterpret_cast<uint8_t*>(&length), sizeof(length)});
  if (length > kMaxHeader) {
    fail(file, "its header would have {} bytes, at most {} are accepted", length, kMaxHeader);
  }
  if (length > file.size() - kLengthBytes) fail(file, "it ends inside its header");
  std::string header(length, '\0');
  file.read_at(kLengthBytes, {reinterpret_cast<uint8_t*>(header.data()), header.size()});
  return header;
}

void check_metadata(const File& file, const json::value& metadata) {
  if (!metadata.is_object()) fail(file, "'__metadata__' is not an object");
  for (const auto& pair : metadata.as_object()) {
    if (!pair.value().is_string()) fail(file, "'__metadata__' holds more than strings");
  }
}

// A list of exactly `count` (or any, at most kMaxDims) unsigned integers.
std::vector<int64_t> unsigned_list(
    const JsonFields& entry, std::string_view key, std::optional<size_t> count) {
  const json::value* list = entry.find(key);
  if (list == nullptr || !list->is_array() || list->as_array().size() > kMaxDims ||
      (count && list->as_array().size() != *count)) {
    entry.fail("'{}' is missing or not the list it should be", key);
  }
  std::vector<int64_t> numbers;
  for (const json::value& number : list->as_array()) {
    if (!number.is_int64() || number.as_int64() < 0) {
      entry.fail("'{}' holds something that is not a size", key);
    }
    numbers.push_back(number.as_int64());
  }
  return numbers;
}

// One entry; `offset` is still relative to the data section.
StoredTensor read_entry(const File& file, const std::string& name, const json::value& value) {
  if (!value.is_object()) fail(file, "the entry '{}' is not an object", name);
  const JsonFields entry(value.as_object(), fmt::format("tensor '{}' of '{}'", name, file.path()));
  for (const auto& pair : value.as_object()) {
    if (pair.key() != "dtype" && pair.key() != "shape" && pair.key() != "data_offsets") {
      entry.fail("the field '{}' is unknown", std::string_view(pair.key()));
    }
  }
  StoredTensor tensor;
  tensor.type_name = entry.text("dtype").value_or("");
  const auto* type = std::ranges::find(kTypes, tensor.type_name, &FileType::name);
  if (type == std::end(kTypes)) entry.fail("the dtype '{}' is unknown", tensor.type_name);
  const auto dtype = readable_dtype(tensor.type_name);
  tensor.readable = dtype.has_value();
  tensor.info.dtype = dtype.value_or(DType::kF32);
  tensor.info.shape = unsigned_list(entry, "shape", std::nullopt);
  const auto offsets = unsigned_list(entry, "data_offsets", 2);
  const int64_t count = checked_count(tensor.info.shape);
  int64_t bits = 0;
  if (count < 0 || __builtin_mul_overflow(count, int64_t{type->bits}, &bits) || bits % 8 != 0) {
    entry.fail("its size cannot be computed or is not whole bytes");
  }
  if (offsets[1] < offsets[0] || offsets[1] - offsets[0] != bits / 8) {
    entry.fail(
        "its shape takes {} bytes, but its offsets are {} to {}", bits / 8, offsets[0], offsets[1]);
  }
  tensor.offset = static_cast<uint64_t>(offsets[0]);
  tensor.bytes = static_cast<uint64_t>(bits / 8);
  return tensor;
}

bool printable(std::string_view name) {
  return std::ranges::none_of(name, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

// The tensors fill the data section: no hole, no overlap, nothing behind the last.
void check_coverage(
    const File& file, uint64_t data_begin, std::unordered_map<std::string, StoredTensor>& tensors) {
  std::vector<std::pair<const std::string*, StoredTensor*>> order;
  order.reserve(tensors.size());
  for (auto& [name, tensor] : tensors) order.emplace_back(&name, &tensor);
  std::ranges::sort(order, {},
      [](const auto& entry) { return std::pair(entry.second->offset, entry.second->bytes); });
  const uint64_t data_bytes = file.size() - data_begin;
  uint64_t end = 0;
  for (const auto& [name, tensor] : order) {
    if (tensor->offset != end) {
      fail(file, "the bytes of tensor '{}' overlap others or leave a hole", *name);
    }
    if (tensor->bytes > data_bytes - end) {
      fail(file, "it ends before its tensor '{}' (it is torn)", *name);
    }
    end += tensor->bytes;
    tensor->offset += data_begin;
  }
  if (end != data_bytes) {
    fail(file, "{} bytes follow its last tensor", data_bytes - end);
  }
}

}  // namespace

std::unordered_map<std::string, StoredTensor> read_safetensors(
    const File& file, size_t file_index) {
  const std::string header = read_header(file);
  const json::object entries =
      parse_json_object(header, fmt::format("the header of '{}'", file.path()));
  if (entries.size() > kMaxTensors) fail(file, "it lists more than a million tensors");
  std::unordered_map<std::string, StoredTensor> tensors;
  for (const auto& pair : entries) {
    const std::string name(pair.key());
    if (name == "__metadata__") {
      check_metadata(file, pair.value());
      continue;
    }
    if (name.size() > kMaxName || !printable(name)) fail(file, "a tensor's name is not printable");
    StoredTensor tensor = read_entry(file, name, pair.value());
    tensor.file = file_index;
    tensors.emplace(name, std::move(tensor));
  }
  check_coverage(file, kLengthBytes + header.size(), tensors);
  return tensors;
}

}  // namespace millrace
