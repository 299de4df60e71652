#include "engine/kernels/cuda/gemm.h"

#include <cublasLt.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <compare>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <vector>

#include "engine/base/log.h"
#include "engine/base/status.h"
#include "engine/core/cuda/cuda_device.h"

namespace millrace::cuda {

namespace {

constexpr int64_t kColdBytes = int64_t{128} << 20;  // more than any L2
constexpr int kCacheVersion = 2;
// Up to so many rows Hopper's own kernel is ahead of all others in a step, where it is full of
// weights before its input is there; measured alone, as the tuner does it, it would seem behind.
constexpr int64_t kStreamRows = 32;
constexpr int64_t kGatedRows = 64;  // the same with a gate inside

void check_cublas(cublasStatus_t result, const char* what) {
  if (result == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ExitCode::kWorkerLost, "{}: cuBLASLt says {}", what, cublasLtGetStatusString(result));
}

cudaDataType_t cuda_type(DType dtype) {
  if (dtype == DType::kF32) return CUDA_R_32F;
  if (dtype == DType::kF16) return CUDA_R_16F;
  CHECK(dtype == DType::kBF16, "no GEMM of {}", dtype_info(dtype).name);
  return CUDA_R_16BF;
}

using DeviceMemory = std::unique_ptr<void, decltype(&cudaFree)>;

// The number of rows whose algorithm M rows use: exact for few, coarser with M.
int64_t bucket(int64_t m) {
  if (m <= 16) return m;
  const auto below = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(m - 1)));
  const int64_t step = std::max<int64_t>(8, below < 512 ? below / 8 : below / 2);
  return (m + step - 1) / step * step;
}

// The largest power of two up to 256 that divides all addresses (what cuBLASLt's choice looks at).
int64_t common_alignment(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 256;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return static_cast<int64_t>(bits & (~bits + 1));
}

// The epilogue adds an aligned bias of D's type; any other is what D holds beforehand.
enum Bias : int { kNoBias, kEpilogueBias, kPrefilledBias };

// What an algorithm is chosen by. Strides in elements.
struct Shape {
  int64_t m = 0, n = 0, k = 0, ldx = 0, ldw = 0, ldo = 0, alignment = 0;
  int act = 0, out = 0, bias = 0;  // DType, DType, Bias
  auto operator<=>(const Shape&) const = default;
};

// Row-major out[M, N] = x[M, K] · w[N, K]ᵀ is column-major outᵀ[N, M] = (wᵀ)ᵀ · xᵀ with wᵀ [K, N]
// and xᵀ [K, M]: the same memory, w first and transposed.
struct Problem {
  Problem(
      const TensorView& x_, const TensorView& w_, const TensorView& bias_, const TensorView& out_)
      : x(x_), w(w_), bias(bias_), out(out_) {
    const int64_t m = x.rows(), n = w.rows(), k = w.cols();
    CHECK(x.cols() == k && out.rows() == m && out.cols() == n && x.dtype == w.dtype,
        "[{}, {}] by [{}, {}] into [{}, {}]", m, x.cols(), n, k, out.rows(), out.cols());
    CHECK(out.dtype == x.dtype || out.dtype == DType::kF32);
    CHECK(bias.data == nullptr || (bias.dtype == x.dtype && bias.count() == n));
    // A row's stride counts only where there is a second one.
    const auto width = [](const TensorView& v) {
      return v.rows() > 1 ? v.stride / dtype_bytes(v.dtype, 1) : v.cols();
    };
    shape = {bucket(m), n, k, width(x), width(w), width(out),
        common_alignment({x.data, w.data, out.data}), static_cast<int>(x.dtype),
        static_cast<int>(out.dtype), kNoBias};
    if (bias.data != nullptr) {
      // Odd widths take kernels that round before they add.
      const bool aligned = reinterpret_cast<uintptr_t>(bias.data) % 16 == 0 && n % 8 == 0;
      shape.bias = aligned && out.dtype == x.dtype ? kEpilogueBias : kPrefilledBias;
    }
    check_cublas(cublasLtMatmulDescInit(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescInit");
    set(CUBLASLT_MATMUL_DESC_TRANSA, cublasOperation_t{CUBLAS_OP_T});
    if (shape.bias == kEpilogueBias) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, cublasLtEpilogue_t{CUBLASLT_EPILOGUE_BIAS});
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<const void*>(bias.data));
    }
    layout(&w_layout, w.dtype, k, n, shape.ldw);
    layout(&x_layout, x.dtype, k, m, shape.ldx);
    layout(&out_layout, out.dtype, n, m, shape.ldo);
  }

  TensorView x, w, bias, out;
  Shape shape;
  cublasLtMatmulDescOpaque_t desc;
  cublasLtMatrixLayoutOpaque_t w_layout, x_layout, out_layout;

 private:
  template <typename T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    check_cublas(cublasLtMatmulDescSetAttribute(&desc, attribute, &value, sizeof(value)),
        "MatmulDescSetAttribute");
  }
  static void layout(
      cublasLtMatrixLayout_t to, DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    check_cublas(cublasLtMatrixLayoutInit(to, cuda_type(dtype), static_cast<uint64_t>(rows),
                     static_cast<uint64_t>(cols), stride),
        "MatrixLayoutInit");
  }
};

enum class Way { kLibrary, kStream, kSkinny };
constexpr const char* kWayNames[] = {"library", "stream", "skinny"};

struct Plan {
  Way way = Way::kLibrary;
  bool tuned = false;
  cublasLtMatmulAlgo_t algo{};
};

// Copies of a weight that together do not fit into L2, to be used in turn, as layers are. Only the
// original when memory is short: what is measured is a bit too good then.
std::vector<TensorView> cold_copies(
    const TensorView& w, cudaStream_t stream, DeviceMemory& memory) {
  const int64_t bytes = (w.rows() - 1) * w.stride + dtype_bytes(w.dtype, w.cols());
  const int64_t offset = reinterpret_cast<intptr_t>(w.data) & 255;
  const int64_t step = (bytes + offset + 255) / 256 * 256;
  std::vector<TensorView> copies(
      static_cast<size_t>(std::min<int64_t>(kColdBytes / step + 1, 16)), w);
  void* all = nullptr;
  if (copies.size() == 1 || cudaMalloc(&all, copies.size() * static_cast<size_t>(step))) {
    cudaGetLastError();
    return {w};
  }
  memory.reset(all);
  for (TensorView& copy : copies) {
    copy.data = static_cast<uint8_t*>(all) + (&copy - copies.data()) * step + offset;
    check_cuda(cudaMemcpyAsync(
                   copy.data, w.data, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
        "copying a weight");
  }
  return copies;
}

}  // namespace

struct Gemm::Impl {
  Impl(cudaStream_t stream_, std::string cache_file_)
      : stream(stream_),
        cache_file(std::move(cache_file_)),
        workspace(nullptr, cudaFree),
        stream_memory(nullptr, cudaFree) {
    check_cublas(cublasLtCreate(&handle), "cublasLtCreate");
    const auto take = [](DeviceMemory& memory, size_t bytes) {
      void* taken = nullptr;
      check_cuda(cudaMalloc(&taken, bytes), "memory for GEMMs (100 MiB)");
      memory.reset(taken);
    };
    take(workspace, static_cast<size_t>(kGemmWorkspaceBytes));
    const auto stream_bytes = static_cast<size_t>(stream_workspace_bytes());
    take(stream_memory, stream_bytes);
    check_cuda(cudaMemsetAsync(stream_memory.get(), 0, stream_bytes, stream), "cudaMemset");
    check_cuda(cudaEventCreate(&begin), "cudaEventCreate");
    check_cuda(cudaEventCreate(&end), "cudaEventCreate");
    int device = 0;
    cudaDeviceProp properties;
    check_cuda(cudaGetDevice(&device), "cudaGetDevice");
    check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    stream_space = {stream_memory.get(), properties.multiProcessorCount};
    header = fmt::format(
        "millrace gemm {}, cublasLt {}, {}", kCacheVersion, cublasLtGetVersion(), properties.name);
    read_cache();
  }
  ~Impl() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cublasLtDestroy(handle);
  }

  std::vector<Plan> heuristics(Problem& p, int count) const;
  Plan& plan(Problem& p);
  bool run(Problem& p, const TensorView& w, const Plan& plan, bool adds = false) const;
  double measure(Problem& p, const std::vector<TensorView>& copies, const Plan& plan, double best);
  void read_cache();
  void write_cache();

  cudaStream_t stream;
  std::string cache_file;
  std::string header;
  cublasLtHandle_t handle = nullptr;
  DeviceMemory workspace, stream_memory;
  StreamWorkspace stream_space;
  std::map<Shape, Plan> plans;
  bool changed = false;
  cudaEvent_t begin = nullptr, end = nullptr;
};

// The library's proposals for exactly these rows, best first.
std::vector<Plan> Gemm::Impl::heuristics(Problem& p, int count) const {
  cublasLtMatmulPreferenceOpaque_t preference;
  check_cublas(cublasLtMatmulPreferenceInit(&preference), "MatmulPreferenceInit");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_cublas(
        cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof(value)),
        "MatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kGemmWorkspaceBytes});
  // Parts of a sum over k are added in fp32, never in the output's type.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  for (const auto attribute :
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    set(attribute, static_cast<uint32_t>(p.shape.alignment));
  }
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, &p.desc, &p.w_layout,
      &p.x_layout, &p.out_layout, &p.out_layout, &preference, count, results.data(), &found);
  std::vector<Plan> plans;
  for (int i = 0; i < found && status == CUBLAS_STATUS_SUCCESS; ++i) {
    const auto& result = results[static_cast<size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS) plans.push_back({Way::kLibrary, false, result.algo});
  }
  if (plans.empty()) {
    throw Error(ExitCode::kWorkerLost,
        "cuBLASLt has no way to multiply {} [{}, {}] by [{}, {}] ({})", dtype_info(p.x.dtype).name,
        p.x.rows(), p.shape.k, p.shape.n, p.shape.k, cublasLtGetStatusString(status));
  }
  return plans;
}

Plan& Gemm::Impl::plan(Problem& p) {
  const auto it = plans.find(p.shape);
  if (it != plans.end()) return it->second;
  Plan plan;
  if (p.x.rows() <= kStreamRows && stream_gemm_supports(p.x, p.w, p.out, false)) {
    plan.way = Way::kStream;
  } else if (p.x.rows() <= 8 && skinny_gemm_supports(p.x, p.w, p.out)) {
    plan.way = Way::kSkinny;
  } else {
    plan = heuristics(p, 1).front();
  }
  return plans[p.shape] = plan;
}

// False when the algorithm does not take this problem, as a line of the cache file that nobody
// wrote so.
bool Gemm::Impl::run(Problem& p, const TensorView& w, const Plan& plan, bool adds) const {
  if (plan.way == Way::kStream) {
    if (!stream_gemm_supports(p.x, p.w, p.out, false)) return false;
    stream_gemm(p.x, w, p.bias, p.out, /*gate=*/std::nullopt, adds, stream_space, stream);
    return true;
  }
  if (plan.way == Way::kSkinny) {
    if (!skinny_gemm_supports(p.x, p.w, p.out)) return false;
    skinny_gemm(p.x, w, p.bias, p.out, adds, stream);
    return true;
  }
  const float one = 1;
  const bool prefilled = p.shape.bias == kPrefilledBias;
  const float beta = prefilled || adds ? 1 : 0;
  if (prefilled) fill_rows(p.bias, p.out, stream);
  return cublasLtMatmul(handle, &p.desc, &one, w.data, &p.w_layout, p.x.data, &p.x_layout, &beta,
             p.out.data, &p.out_layout, p.out.data, &p.out_layout, &plan.algo, workspace.get(),
             static_cast<size_t>(kGemmWorkspaceBytes), stream) == CUBLAS_STATUS_SUCCESS;
}

// Milliseconds of going through the copies, each product behind a small kernel that it may overlap,
// as in a step; at least three products, so that the first launch counts little. The median of
// several; infinite when the plan does not run here or is well behind `best`.
double Gemm::Impl::measure(
    Problem& p, const std::vector<TensorView>& copies, const Plan& plan, double best) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  constexpr int kRepeats = 5;
  if (!run(p, copies.front(), plan)) return kNever;  // else the kernel is loaded now
  std::array<double, kRepeats> times;
  for (double& time : times) {
    check_cuda(cudaEventRecord(begin, stream), "cudaEventRecord");
    for (size_t i = 0; i < std::max<size_t>(copies.size(), 3); ++i) {
      touch(p.x, stream);
      run(p, copies[i % copies.size()], plan);
    }
    check_cuda(cudaEventRecord(end, stream), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end), "tuning a GEMM");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    if (ms > 1.3 * best) return kNever;
    time = ms;
  }
  std::sort(times.begin(), times.end());
  return times[kRepeats / 2];
}

// A line per shape: ten numbers, the way, and the library's algorithm as words in hex. Lines that
// do not read so, and files of another GPU, library or version, count for nothing.
void Gemm::Impl::read_cache() {
  std::ifstream file(cache_file);
  std::string line;
  if (!std::getline(file, line) || line != header) return;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    Shape s;
    Plan plan;
    plan.tuned = true;
    std::string first;
    words >> s.m >> s.n >> s.k >> s.ldx >> s.ldw >> s.ldo >> s.alignment >> s.act >> s.out >>
        s.bias;
    words >> first;
    const auto* way = std::find(std::begin(kWayNames), std::end(kWayNames), first);
    if (way == std::end(kWayNames)) continue;
    plan.way = static_cast<Way>(way - std::begin(kWayNames));
    for (int i = 0; i < 8 && plan.way == Way::kLibrary; ++i) {
      words >> std::hex >> plan.algo.data[i];
    }
    if (!words) continue;
    plans.try_emplace(s, plan);
  }
}

void Gemm::Impl::write_cache() {
  read_cache();  // what another rank has added meanwhile
  const std::filesystem::path path(cache_file);
  const std::string fresh = fmt::format("{}.{}", cache_file, getpid());
  std::error_code code;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), code);
  {
    std::ofstream file(fresh);
    file << header << '\n';
    for (const auto& [s, plan] : plans) {
      if (!plan.tuned) continue;
      file << fmt::format("{} {} {} {} {} {} {} {} {} {}", s.m, s.n, s.k, s.ldx, s.ldw, s.ldo,
          s.alignment, s.act, s.out, s.bias);
      file << ' ' << kWayNames[static_cast<size_t>(plan.way)];
      for (int i = 0; i < 8 && plan.way == Way::kLibrary; ++i) {
        file << fmt::format(" {:016x}", plan.algo.data[i]);
      }
      file << '\n';
    }
    if (!file.flush()) code = std::make_error_code(std::errc::io_error);
  }
  if (!code) std::filesystem::rename(fresh, path, code);
  if (code)
    log::warning("{} cannot be written ({}): GEMMs are tuned anew", cache_file, code.message());
}

Gemm::Gemm(cudaStream_t stream, std::string cache_file)
    : impl_(std::make_unique<Impl>(stream, std::move(cache_file))) {}
Gemm::~Gemm() = default;

void Gemm::run(const TensorView& x, const TensorView& w, const TensorView& bias,
    const TensorView& out, bool adds) {
  if (x.rows() == 0 || w.rows() == 0) return;
  CHECK(!adds || (bias.data == nullptr && out.dtype == x.dtype));
  Problem p(x, w, bias, out);
  if (impl_->run(p, w, impl_->plan(p), adds)) return;
  // The bucket's algorithm does not take exactly these rows: they get a plan of their own.
  p.shape.m = -x.rows();
  CHECK(impl_->run(p, w, impl_->plan(p), adds), "cuBLASLt refuses its own proposal for {} rows",
      x.rows());
}

void Gemm::tune(
    const TensorView& x, const TensorView& w, const TensorView& bias, const TensorView& out) {
  if (x.rows() == 0 || w.rows() == 0) return;
  Problem p(x, w, bias, out);
  if (impl_->plan(p).tuned || impl_->plan(p).way == Way::kStream) return;
  std::vector<Plan> candidates = impl_->heuristics(p, x.rows() <= 512 ? 24 : 8);
  if (skinny_gemm_supports(p.x, p.w, p.out)) {
    candidates.insert(candidates.begin(), {.way = Way::kSkinny});
  }
  if (stream_gemm_supports(p.x, p.w, p.out, false)) {
    candidates.insert(candidates.begin(), {.way = Way::kStream});
  }
  DeviceMemory memory(nullptr, cudaFree);
  const auto copies = cold_copies(w, impl_->stream, memory);
  double best = std::numeric_limits<double>::infinity();
  for (Plan& candidate : candidates) {
    const double ms = impl_->measure(p, copies, candidate, best);
    if (ms >= best) continue;
    best = ms;
    candidate.tuned = true;
    impl_->plans[p.shape] = candidate;
    impl_->changed = true;
  }
}

bool Gemm::run_gated(const TensorView& x, const TensorView& w, const TensorView& bias,
    Activation act, const TensorView& out) const {
  if (x.rows() > kGatedRows || !stream_gemm_supports(x, w, out, /*gated=*/true)) return false;
  stream_gemm(x, w, bias, out, act, /*adds=*/false, impl_->stream_space, impl_->stream);
  return true;
}

void Gemm::save() const {
  if (impl_->changed && !impl_->cache_file.empty()) impl_->write_cache();
  impl_->changed = false;
}

}  // namespace millrace::cuda
