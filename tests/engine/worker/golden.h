// What transformers computed of a tiny checkpoint (tests/data/goldens, made by
// scripts/make_goldens.py).
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <cstring>
#include <string>
#include <vector>

#include "engine/base/file.h"

namespace millrace {

struct Golden {
  std::vector<int32_t> ids;
  std::vector<int32_t> greedy;
  std::vector<float> logits;  // [ids.size(), V]
};

inline std::vector<Golden> read_goldens(const std::string& name) {
  const std::string base = "tests/data/goldens/" + name;
  const boost::json::value doc =
      boost::json::parse(read_file(base + ".json", 1 << 20, ExitCode::kInput));
  const std::string tensors = read_file(base + ".safetensors", 64 << 20, ExitCode::kInput);
  uint64_t header_size = 0;
  std::memcpy(&header_size, tensors.data(), 8);
  const boost::json::value header =
      boost::json::parse(boost::json::string_view(tensors).substr(8, header_size));
  std::vector<Golden> goldens;
  for (const boost::json::value& prompt : doc.at("prompts").as_array()) {
    Golden golden;
    for (const auto& id : prompt.at("ids").as_array())
      golden.ids.push_back(id.to_number<int32_t>());
    for (const auto& id : prompt.at("greedy").as_array()) {
      golden.greedy.push_back(id.to_number<int32_t>());
    }
    const auto& offsets =
        header.at("logits." + std::to_string(goldens.size())).at("data_offsets").as_array();
    const auto begin = offsets[0].to_number<size_t>(), end = offsets[1].to_number<size_t>();
    golden.logits.resize((end - begin) / sizeof(float));
    std::memcpy(golden.logits.data(), tensors.data() + 8 + header_size + begin, end - begin);
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

}  // namespace millrace
