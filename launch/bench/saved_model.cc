#include "launch/bench/saved_model.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <fstream>

#include "engine/base/file.h"
#include "engine/base/strict_json.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxBytes = 1 << 20;

int64_t whole(const boost::json::object& json, const char* key) {
  const boost::json::value* value = json.if_contains(key);
  if (value == nullptr || !value->is_int64() || value->as_int64() < 1 ||
      value->as_int64() > INT32_MAX) {
    throw JsonError(std::string(key) + " is missing or no number from 1 on");
  }
  return value->as_int64();
}

StepModel parse_stage(const boost::json::value& stage) {
  StepModel::Terms weights{};
  const boost::json::array* numbers = stage.if_array();
  if (numbers == nullptr || numbers->size() != weights.size()) {
    throw JsonError("a stage has other terms than this program's model");
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!(*numbers)[i].is_number()) throw JsonError("a stage's weight is no number");
    weights[i] = (*numbers)[i].to_number<double>();
    if (!(weights[i] >= 0 && std::isfinite(weights[i]))) throw JsonError("a weight is negative");
  }
  return StepModel(weights);
}

}  // namespace

void write_step_model(
    const std::string& path, const EngineConfig& engine, const SchedulerStats& stats) {
  boost::json::array stages;
  for (const StepModel::Terms& weights : stats.step_models) {
    stages.push_back(boost::json::array(weights.begin(), weights.end()));
  }
  const boost::json::object json = {{"tp", engine.tp}, {"pp", engine.pp},
      {"block_size", engine.block_size}, {"num_blocks", static_cast<int64_t>(stats.num_blocks)},
      {"max_num_seqs", engine.max_num_seqs},
      {"max_num_batched_tokens", engine.max_num_batched_tokens},
      {"max_model_len", engine.max_model_len}, {"stages", std::move(stages)}};
  std::ofstream out(path);
  out << boost::json::serialize(json) << "\n";
  out.close();
  if (!out) throw Error(ExitCode::kInput, "{}: cannot be written", path);
}

SavedModel read_step_model(const std::string& path) {
  const std::string text = read_file(path, kMaxBytes, ExitCode::kInput);
  try {
    const boost::json::value parsed = parse_strict_json(text, {});
    if (!parsed.is_object()) throw JsonError("not a JSON object");
    const boost::json::object& json = parsed.as_object();
    SavedModel saved;
    const auto number = [&](const char* key) { return static_cast<int32_t>(whole(json, key)); };
    saved.engine.tp = number("tp");
    saved.engine.pp = number("pp");
    saved.engine.block_size = number("block_size");
    saved.engine.max_num_seqs = number("max_num_seqs");
    saved.engine.max_num_batched_tokens = number("max_num_batched_tokens");
    saved.engine.max_model_len = number("max_model_len");
    saved.num_blocks = static_cast<uint32_t>(whole(json, "num_blocks"));
    const boost::json::value* stages = json.if_contains("stages");
    const bool fits = stages != nullptr && stages->is_array() &&
                      stages->as_array().size() == static_cast<size_t>(saved.engine.pp);
    if (!fits || !within_limits(saved.engine)) throw JsonError("stages and limits do not fit");
    for (const boost::json::value& stage : stages->as_array()) {
      saved.stages.push_back(parse_stage(stage));
    }
    return saved;
  } catch (const JsonError& error) {
    throw Error(
        ExitCode::kInput, "{}: no step model of bench --save-model: {}", path, error.what());
  }
}

}  // namespace millrace
