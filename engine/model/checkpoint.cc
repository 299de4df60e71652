#include "engine/model/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/model/families.h"
#include "engine/model/stored_model.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

class FileCheckpoint : public Checkpoint {
 public:
  FileCheckpoint(StoredModel model, const std::string& name, bool dummy)
      : files_(std::move(model.files)), tensors_(std::move(model.tensors)) {
    config_ = std::move(model.config);
    tokenizer_json_ = std::move(model.tokenizer_json);
    chat_template_ = std::move(model.chat_template);
    bos_token_ = std::move(model.bos_token);
    eos_token_ = std::move(model.eos_token);
    name_ = name;
    is_dummy_ = dummy;
  }

  const TensorInfo* find(const std::string& tensor) const override {
    const auto found = tensors_.find(tensor);
    return found != tensors_.end() && found->second.readable ? &found->second.info : nullptr;
  }
  void read(const std::string& tensor, Range rows, Range cols, uint8_t* to) const override;

 private:
  std::vector<File> files_;
  std::unordered_map<std::string, StoredTensor> tensors_;
};

void FileCheckpoint::read(const std::string& tensor, Range rows, Range cols, uint8_t* to) const {
  const auto found = tensors_.find(tensor);
  CHECK(found != tensors_.end() && found->second.readable, "no tensor '{}' to read", tensor);
  const StoredTensor& stored = found->second;
  const std::vector<int64_t>& shape = stored.info.shape;
  // A vector is one line whose columns are asked for as rows.
  const bool is_vector = shape.size() == 1;
  const Range lines = is_vector ? Range{0, 1} : rows;
  const Range columns = is_vector ? rows : cols;
  const int64_t height = is_vector ? 1 : shape[0];
  const int64_t width = is_vector ? shape[0] : checked_count(shape) / std::max<int64_t>(height, 1);
  CHECK(lines.begin >= 0 && lines.size >= 0 && lines.begin <= height - lines.size &&
            columns.begin >= 0 && columns.size >= 0 && columns.begin <= width - columns.size,
      "rows {}+{}, columns {}+{} of '{}' [{}]", rows.begin, rows.size, cols.begin, cols.size,
      tensor, fmt::join(shape, ", "));
  const DType dtype = stored.info.dtype;
  const int block = dtype_info(dtype).block_size;
  CHECK(columns.begin % block == 0 && columns.size % block == 0, "'{}' cut inside a block", tensor);

  const auto line_bytes = static_cast<size_t>(dtype_bytes(dtype, width));
  const auto part_bytes = static_cast<size_t>(dtype_bytes(dtype, columns.size));
  const uint64_t begin = stored.offset + static_cast<uint64_t>(lines.begin) * line_bytes +
                         static_cast<uint64_t>(dtype_bytes(dtype, columns.begin));
  const auto count = static_cast<size_t>(lines.size);
  const File& file = files_[stored.file];
  try {
    if (part_bytes == line_bytes) {
      file.read_at(begin, {to, count * line_bytes});
    } else {
      for (size_t i = 0; i < count; ++i) {
        file.read_at(begin + i * line_bytes, {to + i * part_bytes, part_bytes});
      }
    }
  } catch (const Error& error) {
    throw Error(error.exit_code(), "tensor '{}': {}", tensor, error.what());
  }
}

// Weights of a layer that the decoder would leave out. (Other tensors, such as tables of older
// files and layers beyond the config's, change nothing.)
void refuse_unused_weights(
    const StoredModel& model, const std::set<std::string>& used, const std::string& path) {
  for (const auto& [name, stored] : model.tensors) {
    constexpr std::string_view kLayers = "model.layers.";
    if (!name.starts_with(kLayers) || used.contains(name)) continue;
    const bool is_weight = name.ends_with(".weight") || name.ends_with(".bias");
    if (!is_weight ||
        std::strtoll(name.c_str() + kLayers.size(), nullptr, 10) >= model.config.num_layers)
      continue;
    throw Error(ExitCode::kModel,
        "'{}' has a tensor '{}', which the family '{}' does not use as its config stands: it is a "
        "variant that this build does not compute",
        path, name, model.config.family);
  }
}

// Every tensor the config asks for, in its shape and in a type we have kernels for.
void check_tensors(const StoredModel& model, const std::string& path) {
  std::set<std::string> used;
  for (const ExpectedTensor& expected : expected_tensors(model.config)) {
    used.insert(expected.name);
    const auto found = model.tensors.find(expected.name);
    if (found == model.tensors.end()) {
      throw Error(ExitCode::kModel,
          "'{}' has no tensor '{}', which its config asks for: the files are incomplete or do not "
          "belong together; download the model again",
          path, expected.name);
    }
    const StoredTensor& stored = found->second;
    if (stored.info.shape != expected.shape) {
      throw Error(ExitCode::kModel,
          "tensor '{}' of '{}' has the shape [{}], but the config asks for [{}]: the files do not "
          "belong together; download the model again",
          expected.name, path, fmt::join(stored.info.shape, ", "), fmt::join(expected.shape, ", "));
    }
    if (!stored.readable) {
      throw Error(ExitCode::kModel,
          "tensor '{}' of '{}' is stored as {}; supported are F32, F16 and BF16, and in GGUF files "
          "also Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K and IQ4_NL: use a file of one of these",
          expected.name, path, stored.type_name);
    }
  }
  refuse_unused_weights(model, used, path);
}

bool begins_as_gguf(const std::string& path) {
  const File file(path, ExitCode::kModel);
  std::array<uint8_t, 4> magic{};
  if (file.size() >= magic.size()) file.read_at(0, magic);
  return std::memcmp(magic.data(), "GGUF", magic.size()) == 0;
}

// The last part of the path, without ".gguf"; "." and "models/" count as the folder they are.
std::string model_name(const fs::path& path) {
  std::error_code code;
  fs::path full = fs::absolute(path, code).lexically_normal();
  if (!full.has_filename()) full = full.parent_path();
  return (full.extension() == ".gguf" ? full.stem() : full.filename()).string();
}

}  // namespace

std::optional<DType> readable_dtype(std::string_view type_name) {
  constexpr std::pair<std::string_view, DType> kReadable[] = {{"F32", DType::kF32},
      {"F16", DType::kF16}, {"BF16", DType::kBF16}, {"Q8_0", DType::kQ8_0}, {"Q4_0", DType::kQ4_0},
      {"Q4_1", DType::kQ4_1}, {"Q5_0", DType::kQ5_0}, {"Q5_1", DType::kQ5_1}, {"Q2_K", DType::kQ2K},
      {"Q3_K", DType::kQ3K}, {"Q4_K", DType::kQ4K}, {"Q5_K", DType::kQ5K}, {"Q6_K", DType::kQ6K},
      {"IQ4_NL", DType::kIq4Nl}};
  for (const auto& [name, dtype] : kReadable) {
    if (name == type_name) return dtype;
  }
  return std::nullopt;
}

int64_t checked_count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  bool empty = false;
  for (const int64_t size : shape) {
    if (size < 0) return -1;
    if (size == 0) {
      empty = true;  // sizes after it are still held against the limit
    } else if (__builtin_mul_overflow(count, size, &count) || count > (int64_t{1} << 62)) {
      return -1;
    }
  }
  return empty ? 0 : count;
}

bool readable_as_stored(const TensorInfo& info, Range cols) {
  const int block = dtype_info(info.dtype).block_size;
  return cols.begin % block == 0 && cols.size % block == 0;
}

std::shared_ptr<const Checkpoint> open_checkpoint(const std::string& path, bool dummy) {
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (!fs::exists(status)) {
    throw Error(ExitCode::kModel,
        "there is no model at '{}'; give the path of a model folder "
        "(config.json, *.safetensors) or of a .gguf file",
        path);
  }
  StoredModel model;
  if (fs::is_directory(status)) {
    model = read_folder(path, !dummy);
    for (auto& expected : expected_tensors(model.config)) {
      if (dummy) model.tensors[expected.name] = {{DType::kBF16, expected.shape}, "BF16", true};
    }
  } else if (dummy) {
    throw Error(
        ExitCode::kUsage, "--load-format dummy needs a folder with a config.json, not '{}'", path);
  } else if (begins_as_gguf(path)) {
    model = read_gguf_model(path);
  } else {
    const bool weights = fs::path(path).extension() == ".safetensors";
    throw Error(ExitCode::kModel, "'{}' is not a GGUF file; {}", path,
        weights ? "give the folder that holds it, with its config.json"
                : "give a model folder (config.json, *.safetensors) or a .gguf file");
  }
  check_tensors(model, path);
  return std::make_shared<FileCheckpoint>(std::move(model), model_name(path), dummy);
}

}  // namespace millrace
