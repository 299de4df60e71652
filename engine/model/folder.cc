// A model folder in Hugging Face's layout as a StoredModel: config.json, generation_config.json,
// tokenizer.json, tokenizer_config.json, chat_template.jinja, model*.safetensors.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <filesystem>
#include <set>

#include "engine/base/status.h"
#include "engine/model/json_fields.h"
#include "engine/model/stored_model.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr uint64_t kMaxConfig = 4 << 20;
constexpr uint64_t kMaxTokenizer = 64 << 20;
constexpr uint64_t kMaxIndex = 64 << 20;
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr std::string_view kSingle = "model.safetensors";

// Files of the folder, none of them reached through a link that leaves it.
class Folder {
 public:
  explicit Folder(const std::string& path) : path_(path) {
    std::error_code code;
    root_ = fs::canonical(path, code);
    if (code) throw Error(ExitCode::kModel, "cannot open '{}': {}", path, code.message());
    // Hugging Face's cache keeps a snapshot as links into the repository's folder.
    if (root_.parent_path().filename() == "snapshots") root_ = root_.parent_path().parent_path();
  }

  const std::string& path() const { return path_; }
  bool has(std::string_view name) const {
    std::error_code code;
    return fs::exists(fs::path(path_) / name, code);
  }
  // The file's path, checked; throws when it leads out of the folder.
  std::string inside(const std::string& name) const {
    const fs::path file = fs::path(path_) / name;
    std::error_code code;
    const fs::path target = fs::weakly_canonical(file, code);
    const auto [root, rest] = std::ranges::mismatch(root_, target);
    if (code || root != root_.end()) {
      throw Error(ExitCode::kModel,
          "'{}' is a link that leaves the model folder; put the file itself there", file.string());
    }
    return file.string();
  }
  // The whole text; empty when there is no such file.
  std::string text(std::string_view name, uint64_t max_bytes) const {
    if (!has(name)) return {};
    return read_file(inside(std::string(name)), max_bytes, ExitCode::kModel);
  }

 private:
  std::string path_;
  fs::path root_;
};

[[noreturn]] void no_weights(const Folder& folder) {
  bool has_pickle = false;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(folder.path(), code)) {
    has_pickle |= entry.path().extension() == ".bin" || entry.path().extension() == ".pth";
  }
  throw Error(ExitCode::kModel, "'{}' has no {} (or {}){}", folder.path(), kSingle, kIndex,
      has_pickle
          ? "; its .bin files can hold code and are not read: convert the model to safetensors"
          : ": it is not a model folder or incomplete; download the model again");
}

void add_file(const Folder& folder, const std::string& name, StoredModel& model) {
  const size_t index = model.files.size();
  model.files.emplace_back(folder.inside(name), ExitCode::kModel);
  for (auto& [tensor, stored] : read_safetensors(model.files.back(), index)) {
    const auto [entry, fresh] = model.tensors.emplace(tensor, std::move(stored));
    if (!fresh) {
      throw Error(ExitCode::kModel,
          "tensor '{}' lies in two files of '{}', {} and {}; download the model again",
          entry->first, folder.path(),
          fs::path(model.files[entry->second.file].path()).filename().string(), name);
    }
  }
}

// tensor -> file of the index, whose file names are plain names.
std::unordered_map<std::string, std::string> read_weight_map(const JsonFields& index) {
  const json::value* map = index.find("weight_map");
  if (map == nullptr || !map->is_object()) index.fail("'weight_map' is missing");
  std::unordered_map<std::string, std::string> files;
  for (const auto& pair : map->as_object()) {
    const std::string file = pair.value().is_string() ? std::string(pair.value().as_string()) : "";
    if (!file.ends_with(".safetensors") || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      index.fail("the file of tensor '{}' is not a .safetensors file of the folder",
          std::string_view(pair.key()));
    }
    files.emplace(pair.key(), file);
  }
  return files;
}

void check_total_size(const JsonFields& index, const StoredModel& model) {
  const json::value* metadata = index.find("metadata");
  if (metadata == nullptr || !metadata->is_object()) return;
  const JsonFields fields(metadata->as_object(), index.where());
  uint64_t total = 0;
  for (const auto& [name, tensor] : model.tensors) total += tensor.bytes;
  const auto stated = fields.number("total_size", 0, 9e15);
  if (stated && *stated != static_cast<double>(total)) {
    fields.fail(
        "'total_size' is {:.0f}, but the tensors have {} bytes: the files do not belong together; "
        "download the model again",
        *stated, total);
  }
}

void read_shards(const Folder& folder, StoredModel& model) {
  const std::string where = fmt::format("{} of '{}'", kIndex, folder.path());
  const json::object object = parse_json_object(folder.text(kIndex, kMaxIndex), where);
  const JsonFields index(object, where);
  const auto weight_map = read_weight_map(index);
  std::set<std::string> names;
  for (const auto& [tensor, file] : weight_map) names.insert(file);
  const std::vector<std::string> files(names.begin(), names.end());
  for (const std::string& file : files) {
    if (!folder.has(file)) {
      throw Error(ExitCode::kModel, "'{}' lacks the file {}, which its index names; download it",
          folder.path(), file);
    }
    add_file(folder, file, model);
  }
  for (const auto& [tensor, file] : weight_map) {
    const auto found = model.tensors.find(tensor);
    if (found == model.tensors.end() || files[found->second.file] != file) {
      index.fail("tensor '{}' is not in the file {}; download the model again", tensor, file);
    }
  }
  for (const auto& [tensor, stored] : model.tensors) {
    if (weight_map.contains(tensor)) continue;
    index.fail("'weight_map' does not name the tensor '{}' of {}; download the model again", tensor,
        files[stored.file]);
  }
  check_total_size(index, model);
}

void find_weights(const Folder& folder, StoredModel& model) {
  if (folder.has(kSingle)) {
    add_file(folder, std::string(kSingle), model);
  } else if (folder.has(kIndex)) {
    read_shards(folder, model);
  } else {
    no_weights(folder);
  }
}

// A token is given as its text or as an object with "content".
std::string token_text(const JsonFields& fields, std::string_view name) {
  const json::value* token = fields.find(name);
  if (token == nullptr) return {};
  if (!token->is_object()) return *fields.text(name);
  return JsonFields(token->as_object(), fields.where()).text("content").value_or("");
}

// The template is a string or a list of named ones, of which "default" is for chat.
std::string configured_template(const JsonFields& fields) {
  const json::value* value = fields.find("chat_template");
  if (value == nullptr) return {};
  if (!value->is_array()) return *fields.text("chat_template");
  for (const json::value& entry : value->as_array()) {
    if (!entry.is_object()) fields.fail("'chat_template' holds something that is not an object");
    const JsonFields named(entry.as_object(), fields.where());
    if (named.text("name") == "default") return named.text("template").value_or("");
  }
  return {};
}

void read_text_files(const Folder& folder, StoredModel& model) {
  model.tokenizer_json = folder.text("tokenizer.json", kMaxTokenizer);
  if (const std::string text = folder.text("tokenizer_config.json", kMaxConfig); !text.empty()) {
    const std::string where = fmt::format("tokenizer_config.json of '{}'", folder.path());
    const json::object object = parse_json_object(text, where);
    const JsonFields fields(object, where);
    model.bos_token = token_text(fields, "bos_token");
    model.eos_token = token_text(fields, "eos_token");
    model.chat_template = configured_template(fields);
  }
  // A file of its own comes before the one in the config, as in transformers.
  if (folder.has("chat_template.jinja")) {
    model.chat_template = folder.text("chat_template.jinja", kMaxConfig);
  }
}

}  // namespace

StoredModel read_folder(const std::string& path, bool with_weights) {
  const Folder folder(path);
  if (!folder.has("config.json")) {
    throw Error(ExitCode::kModel,
        "'{}' has no config.json: it is not a model folder; give the folder that holds config.json "
        "and the weights, or a .gguf file",
        path);
  }
  StoredModel model;
  model.config = parse_hf_config(folder.text("config.json", kMaxConfig),
      folder.text("generation_config.json", kMaxConfig), path);
  if (with_weights) find_weights(folder, model);
  read_text_files(folder, model);
  return model;
}

}  // namespace millrace
