// Model folders: what is read, and the sentence each broken one gets.
#include <filesystem>

#include "engine/model/checkpoint.h"
#include "tests/engine/model/files.h"

namespace millrace {
namespace {

namespace fs = std::filesystem;

// A copy of the sharded model, to be broken.
class FolderTest : public testing::Test {
 protected:
  FolderTest() { fs::copy("tests/data/tiny-llama-tied", folder_); }
  void refused(const char* message) {
    expect_model_error([&] { open_checkpoint(folder_); }, message);
  }
  // Replaces the first `from` in a file.
  void edit(const std::string& name, const std::string& from, const std::string& to) {
    std::string text = read_all(folder_ + "/" + name);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file(folder_ + "/" + name, text.replace(at, from.size(), to));
  }
  void remove(const std::string& name) { ASSERT_TRUE(fs::remove(folder_ + "/" + name)); }

  TempDir dir_;
  std::string folder_ = dir_ / "model";
  const std::string index_ = "model.safetensors.index.json";
  const std::string first_ = "model-00001-of-00002.safetensors";
};

TEST_F(FolderTest, ReadsEverything) {
  const auto checkpoint = open_checkpoint(folder_ + "/");
  EXPECT_EQ(checkpoint->name(), "model");
  EXPECT_EQ(checkpoint->bos_token(), "<|im_start|>");  // given as an object
  EXPECT_EQ(checkpoint->eos_token(), "<|im_end|>");
  EXPECT_EQ(checkpoint->config().eos_token_ids, (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(checkpoint->config().rope.kind, RopeKind::kLlama3);
  EXPECT_TRUE(checkpoint->config().tie_embeddings);
  EXPECT_NE(checkpoint->chat_template().find("<|im_start|>"), std::string::npos);
  EXPECT_NE(checkpoint->tokenizer_json().find("\"BPE\""), std::string::npos);
}

TEST_F(FolderTest, TemplateFileComesFirst) {
  write_file(folder_ + "/chat_template.jinja", "{{ messages }}");
  EXPECT_EQ(open_checkpoint(folder_)->chat_template(), "{{ messages }}");
}

TEST_F(FolderTest, WorksWithoutTextFiles) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    remove(name);
  }
  const auto checkpoint = open_checkpoint(folder_);
  EXPECT_EQ(checkpoint->tokenizer_json(), "");
  EXPECT_EQ(checkpoint->chat_template(), "");
  EXPECT_EQ(checkpoint->config().eos_token_ids, (std::vector<int32_t>{2}));
}

TEST_F(FolderTest, NamesWhatIsNotAModel) {
  expect_model_error([&] { open_checkpoint(dir_ / "nothing"); }, "there is no model at");
  expect_model_error([&] { open_checkpoint(dir_.path()); }, "has no config.json");
  write_file(dir_ / "notes.txt", "hello");
  expect_model_error([&] { open_checkpoint(dir_ / "notes.txt"); }, "is not a GGUF file");
  expect_model_error([&] { open_checkpoint(folder_ + "/" + first_); }, "give the folder");
}

TEST_F(FolderTest, NamesMissingWeights) {
  remove(first_);
  refused("lacks the file model-00001-of-00002.safetensors");
  remove(index_);
  refused("has no model.safetensors");
  write_file(folder_ + "/pytorch_model.bin", "x");
  refused("convert the model to safetensors");
}

TEST_F(FolderTest, NamesTornShards) {
  fs::resize_file(folder_ + "/" + first_, fs::file_size(folder_ + "/" + first_) - 1);
  refused("torn");
}

TEST_F(FolderTest, HoldsTheIndexAgainstTheFiles) {
  edit(index_, "\"model.norm.weight\": \"model-00002", "\"model.norm.weight\": \"model-00001");
  refused("'model.norm.weight' is not in the file model-00001");
}

TEST_F(FolderTest, IndexNamesEveryTensor) {
  edit(index_, "\"model.norm.weight\"", "\"model.norm.wait\"");
  refused("'model.norm.wait' is not in the file");
}

TEST_F(FolderTest, IndexStaysInTheFolder) {
  edit(index_, "\"model-00001-of-00002.safetensors\"", "\"../model-00001-of-00002.safetensors\"");
  refused("not a .safetensors file of the folder");
}

TEST_F(FolderTest, TotalSizeIsChecked) {
  edit(index_, "\"total_size\": ", "\"total_size\": 1");
  refused("'total_size'");
}

TEST_F(FolderTest, TensorInTwoFiles) {
  fs::copy_file(folder_ + "/" + first_, folder_ + "/again.safetensors");
  edit(index_, "model-00001-of-00002", "again");
  refused("lies in two files");
}

TEST_F(FolderTest, NamesMissingTensors) {
  edit("config.json", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
  refused("has no tensor 'lm_head.weight'");
}

TEST_F(FolderTest, NamesWrongShapes) {
  edit("config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 97");
  refused("has the shape [96, 64], but the config asks for [97, 64]");
}

TEST_F(FolderTest, NamesTypesWithoutKernels) {
  std::string text = read_all(folder_ + "/" + first_);
  const size_t at = text.find("\"BF16\"");  // the embedding's or a layer's; both are needed
  write_file(folder_ + "/" + first_, text.replace(at, 6, "\"I16\" "));
  refused("is stored as I16; supported are F32, F16 and BF16");
}

TEST_F(FolderTest, LinksMustStayInside) {
  const std::string outside = dir_ / "weights.safetensors";
  fs::rename(folder_ + "/" + first_, outside);
  fs::create_symlink(outside, folder_ + "/" + first_);
  refused("is a link that leaves the model folder");
}

TEST_F(FolderTest, CacheOfHuggingFaceIsAFolderOfLinks) {
  const std::string repository = dir_ / "models--a--b";
  fs::create_directories(repository + "/blobs");
  fs::create_directories(repository + "/snapshots/main");
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename();
    fs::copy_file(entry.path(), repository + "/blobs/" + name);
    fs::create_symlink("../../blobs/" + name, repository + "/snapshots/main/" + name);
  }
  EXPECT_EQ(open_checkpoint(repository + "/snapshots/main")->config().num_layers, 2);
}

TEST_F(FolderTest, CodeInTheFolderIsIgnored) {
  edit("config.json", "\"model_type\"", "\"auto_map\": {\"AutoConfig\": \"x.Y\"}, \"model_type\"");
  write_file(folder_ + "/x.py", "raise SystemExit");
  EXPECT_EQ(open_checkpoint(folder_)->config().num_layers, 2);
}

TEST_F(FolderTest, AFileThatShrinksIsAnErrorWithItsName) {
  const auto checkpoint = open_checkpoint(folder_);
  fs::resize_file(folder_ + "/" + first_, 4096);
  std::vector<uint8_t> bytes(512 * 64 * 2);
  expect_model_error(
      [&] {
        checkpoint->read("model.embed_tokens.weight", {0, 512}, {0, 64}, bytes.data());
      },
      "tensor 'model.embed_tokens.weight'");
}

}  // namespace
}  // namespace millrace
