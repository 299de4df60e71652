#include "comm/cuda/nccl_world.h"

#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <future>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/cuda/one_shot.h"
#include "engine/base/log.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

enum Tag : int { kHidden = 1, kIds = 2 };

void check_nccl(ncclResult_t result, const char* what) {
  if (result == ncclSuccess) return;
  throw Error(ExitCode::kWorkerLost, "{}: NCCL says {} ({})", what, ncclGetErrorString(result),
      ncclGetLastError(nullptr));
}

ncclDataType_t nccl_type(DType dtype) {
  if (dtype == DType::kF32) return ncclFloat32;
  if (dtype == DType::kF16) return ncclFloat16;
  CHECK(dtype == DType::kBF16, "no sum of {}", dtype_info(dtype).name);
  return ncclBfloat16;
}

// The same for all processes of one running system, and for no others.
uint64_t host_number() {
  std::string id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), id);
  return std::hash<std::string>()(id);
}

class TpGroup final : public DeviceComm {
 public:
  TpGroup(CudaDevice& device, int rank, int size) : device_(device) {
    group_.rank = rank;
    group_.size = size;
  }
  ~TpGroup() override { close_inboxes(); }

  // Collective; enqueues sums and gathers, so that NCCL's connections are made here as well.
  void connect(const NcclLayout& layout, ncclComm_t comm, const uint32_t* abort) {
    comm_ = comm;
    scratch_ = device_.allocate(layout.max_gather_bytes, "gathered columns");
    group_.alone = layout.pp == 1;
    group_.abort = abort;
    one_shot_ = open_inboxes();
    if (!one_shot_) close_inboxes();
    log::info("tensor-parallel sums: {}", one_shot_ ? "one shot over CUDA IPC, NCCL when large"
                                                    : "NCCL (no peer access among all ranks)");
  }

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size; }

  const char* sum_method(int64_t bytes) const override {
    return one_shot_ && bytes <= cuda::one_shot_limit(size()) ? "one shot" : "NCCL";
  }
  void all_reduce_sum(const TensorView& x) override {
    if (size() == 1 || x.count() == 0) return;
    CHECK(x.contiguous());
    if (one_shot_ && cuda::one_shot_supports(size(), x)) {
      return cuda::one_shot_all_reduce(group_, x, device_.stream());
    }
    check_nccl(ncclAllReduce(x.data, x.data, static_cast<size_t>(x.count()), nccl_type(x.dtype),
                   ncclSum, comm_, device_.stream()),
        "ncclAllReduce");
  }

  bool all_reduce_add_norm(const TensorView& x, const TensorView& residual,
      const TensorView& weight, float eps, const TensorView& out) override {
    if (!one_shot_ || !cuda::one_shot_add_norm_supports(size(), x)) return false;
    cuda::one_shot_add_norm(group_, x, residual, weight, eps, out, device_.stream());
    return true;
  }

  void all_gather_cols(
      const TensorView& mine, std::span<const int64_t> cols, const TensorView& out) override {
    CHECK(static_cast<int>(cols.size()) == size() && mine.dtype == DType::kF32 &&
          out.dtype == DType::kF32 && mine.contiguous() && out.contiguous() &&
          mine.rows() == out.rows() && mine.cols() == cols[static_cast<size_t>(rank())] &&
          out.cols() == std::accumulate(cols.begin(), cols.end(), int64_t{0}));
    if (out.count() == 0) return;
    if (size() == 1) {
      if (mine.data == out.data) return;
      return device_.enqueue_copy(out.data, mine.data, out.count() * 4);
    }
    // One row side by side is what a gather gives.
    const bool direct = out.rows() == 1;
    CHECK(direct || out.count() * 4 <= scratch_.bytes(), "{} bytes to gather, room for {}",
        out.count() * 4, scratch_.bytes());
    auto* gathered = reinterpret_cast<float*>(direct ? out.data : scratch_.data());
    gather(mine.as<float>(), out.rows(), cols, gathered);
    if (!direct) cuda::interleave_cols(gathered, cols, out, device_.stream());
  }

 private:
  // f32 [rows, cols[r]] of every rank r, one after another.
  void gather(const float* mine, int64_t rows, std::span<const int64_t> cols, float* to) {
    const auto count = [&](int64_t width) { return static_cast<size_t>(rows * width); };
    if (std::all_of(cols.begin(), cols.end(), [&](int64_t c) { return c == cols[0]; })) {
      check_nccl(ncclAllGather(mine, to, count(cols[0]), ncclFloat32, comm_, device_.stream()),
          "ncclAllGather");
      return;
    }
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    for (int r = 0; r < size(); ++r) {
      const size_t part = count(cols[static_cast<size_t>(r)]);
      if (part == 0) continue;
      check_nccl(
          ncclBroadcast(mine, to, part, ncclFloat32, r, comm_, device_.stream()), "ncclBroadcast");
      to += part;
    }
    check_nccl(ncclGroupEnd(), "ncclGroupEnd");
  }

  // False when some rank cannot write into all others' memory; the answer is the same everywhere.
  bool open_inboxes() {
    struct Card {
      cudaIpcMemHandle_t handle;
      uint64_t host;
    };
    const auto ranks = static_cast<size_t>(size());
    const auto me = static_cast<size_t>(rank());
    int32_t usable =
        size() <= cuda::kMaxOneShotRanks && 2 * device_.num_sms() >= cuda::kOneShotBlocks ? 1 : 0;
    inbox_ = device_.allocate(usable != 0 ? one_shot_inbox_bytes(size()) : 0, "an inbox");
    epochs_ = device_.allocate(cuda::kOneShotBlocks * sizeof(uint32_t), "the sums' counters");
    // NCCL connects at a verb's first use: now, while somebody looks at the clock.
    check_nccl(ncclAllReduce(inbox_.data(), inbox_.data(), static_cast<size_t>(inbox_.bytes() / 4),
                   ncclFloat32, ncclSum, comm_, device_.stream()),
        "ncclAllReduce");
    group_.epochs = reinterpret_cast<uint32_t*>(epochs_.data());
    std::vector<Card> cards(ranks);
    cards[me].host = host_number();
    if (cudaIpcGetMemHandle(&cards[me].handle, inbox_.data()) != cudaSuccess) usable = 0;
    exchange(cards.data(), sizeof(Card));
    for (size_t r = 0; r < ranks && usable != 0; ++r) {
      void* peer = inbox_.data();
      const bool here = cards[r].host == cards[me].host;
      usable = here && (r == me || cudaIpcOpenMemHandle(&peer, cards[r].handle,
                                       cudaIpcMemLazyEnablePeerAccess) == cudaSuccess);
      if (usable != 0) group_.inboxes[r] = peer;
    }
    cudaGetLastError();  // a refusal is an answer
    std::vector<int32_t> answers(ranks);
    answers[me] = usable;
    exchange(answers.data(), sizeof(int32_t));
    return std::count(answers.begin(), answers.end(), 0) == 0;
  }

  // Entry r of `entries` (host memory, one per rank) becomes rank r's.
  void exchange(void* entries, size_t bytes) {
    const size_t all = bytes * static_cast<size_t>(size());
    const size_t mine = bytes * static_cast<size_t>(rank());
    const Buffer buffer = device_.allocate(static_cast<int64_t>(all), "start-up messages");
    auto* host = static_cast<uint8_t*>(entries);
    device_.copy_to_device(buffer.data(), {host, all});
    check_nccl(ncclAllGather(
                   buffer.data() + mine, buffer.data(), bytes, ncclUint8, comm_, device_.stream()),
        "ncclAllGather");
    device_.copy_to_host({host, all}, buffer.data());
  }

  void close_inboxes() {
    for (int r = 0; r < cuda::kMaxOneShotRanks; ++r) {
      if (r != rank() && group_.inboxes[r] != nullptr) cudaIpcCloseMemHandle(group_.inboxes[r]);
      group_.inboxes[r] = nullptr;
    }
    inbox_ = {};
  }

  CudaDevice& device_;
  ncclComm_t comm_ = nullptr;
  cuda::OneShotGroup group_;
  bool one_shot_ = false;
  Buffer inbox_, epochs_, scratch_;
};

// One direction between two ranks.
struct Edge {
  ~Edge() {
    if (stream != nullptr) cudaStreamDestroy(stream);
    if (event != nullptr) cudaEventDestroy(event);
  }
  // What comes next on `behind` waits for all that `before` has now.
  void order(cudaStream_t before, cudaStream_t behind) {
    check_cuda(cudaEventRecord(event, before), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(behind, event, 0), "cudaStreamWaitEvent");
  }
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  int peer = -1;       // rank in the job
  int peer_index = 0;  // rank in `comm`
};

class Peers final : public PeerComm {
 public:
  explicit Peers(CudaDevice& device) : device_(device) {}
  ~Peers() override {
    for (const cudaEvent_t event : sent_) cudaEventDestroy(event);
  }

  SendToken send(std::span<const uint8_t> bytes, int to, int tag) override {
    Edge& e = edge(tag == kHidden ? next : ids, to);
    e.order(device_.stream(), e.stream);
    if (!bytes.empty()) {
      check_nccl(ncclSend(bytes.data(), bytes.size(), ncclUint8, e.peer_index, e.comm, e.stream),
          "ncclSend");
    }
    if (free_.empty()) {
      free_.push_back(static_cast<SendToken>(sent_.size()));
      check_cuda(cudaEventCreateWithFlags(&sent_.emplace_back(), cudaEventDisableTiming),
          "cudaEventCreate");
    }
    const SendToken token = free_.back();
    free_.pop_back();
    check_cuda(cudaEventRecord(sent_[static_cast<size_t>(token)], e.stream), "cudaEventRecord");
    return token;
  }

  void wait_send(SendToken token) override {
    CHECK(token >= 0 && token < static_cast<SendToken>(sent_.size()), "send {}", token);
    check_cuda(cudaStreamWaitEvent(device_.stream(), sent_[static_cast<size_t>(token)], 0),
        "cudaStreamWaitEvent");
    free_.push_back(token);  // the wait keeps the record it saw
  }

  void receive(std::span<uint8_t> bytes, int from, int tag) override {
    Edge& e = edge(tag == kHidden ? previous : ids, from);
    if (bytes.empty()) return;
    e.order(device_.stream(), e.stream);
    check_nccl(ncclRecv(bytes.data(), bytes.size(), ncclUint8, e.peer_index, e.comm, e.stream),
        "ncclRecv");
    e.order(e.stream, device_.stream());
  }

  Edge next, previous, ids;

 private:
  static Edge& edge(Edge& e, int peer) {
    CHECK(e.comm != nullptr && e.peer == peer, "no edge to rank {}", peer);
    return e;
  }

  CudaDevice& device_;
  std::vector<cudaEvent_t> sent_;  // by token; few: two per lane
  std::vector<SendToken> free_;
};

class World final : public NcclWorld {
 public:
  World(const NcclLayout& layout, CudaDevice& device)
      : layout_(layout),
        device_(device),
        abort_(device.allocate_host(sizeof(uint32_t), "the abort word")),
        tp_(device, layout.rank % layout.tp, layout.tp),
        peers_(device) {}

  // Never waits for a peer: NCCL's kernels and ours are told to give up. Graphs go first, for NCCL
  // waits for those that refer to a communicator.
  ~World() override {
    *reinterpret_cast<volatile uint32_t*>(abort_.data()) = 1;
    device_.drop_graphs();
    for (auto it = comms_.rbegin(); it != comms_.rend(); ++it) ncclCommAbort(*it);
    cudaDeviceSynchronize();  // nobody writes into an inbox that is about to be unmapped
  }

  DeviceComm& tp() override { return tp_; }
  PeerComm& peers() override { return peers_; }
  void check() override {
    for (const ncclComm_t comm : comms_) {
      ncclResult_t state = ncclSuccess;
      const ncclResult_t result = ncclCommGetAsyncError(comm, &state);
      check_nccl(result != ncclSuccess ? result : state, "a transfer between GPUs failed");
    }
  }

  // Collective. Makes every communicator and sends something through each.
  void connect(const ncclUniqueId& id) {
    device_.stream();  // makes the GPU this thread's
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclComm_t world = nullptr;
    step_ = "joining all ranks";
    check_nccl(ncclCommInitRankConfig(&world, layout_.tp * layout_.pp, id, layout_.rank, &config),
        "ncclCommInitRank");
    comms_.push_back(world);
    if (layout_.tp > 1) {
      step_ = "joining the tensor-parallel group";
      const bool is_all = layout_.pp == 1;  // another communicator would cost time and memory
      const ncclComm_t comm = is_all ? world : split(stage(), layout_.rank % layout_.tp, &config);
      tp_.connect(layout_, comm, reinterpret_cast<uint32_t*>(abort_.data()));
    }
    if (layout_.pp > 1) connect_stages();
    device_.synchronize();
  }
  const char* step() const { return step_; }

 private:
  int stage() const { return layout_.rank / layout_.tp; }

  ncclComm_t split(int color, int key, ncclConfig_t* config) {
    ncclComm_t comm = nullptr;
    check_nccl(ncclCommSplit(comms_.front(), color, key, &comm, config), "ncclCommSplit");
    if (comm != nullptr) comms_.push_back(comm);
    return comm;
  }

  // Stages s and s + 1 for even s, then for odd s, then last and first: every rank passes the three
  // rounds in this order, so none waits in a circle.
  void connect_stages() {
    const int s = stage(), last = layout_.pp - 1;
    for (int parity = 0; parity < std::min(last, 2); ++parity) {
      step_ = "joining the stages before and after";
      if (s % 2 == parity && s < last) {
        join(&peers_.next, s, s + 1, true);
      } else {
        join(s % 2 != parity && s > 0 ? &peers_.previous : nullptr, s - 1, s - 1, false);
      }
    }
    step_ = "joining the last stage and the first";
    if (s == last) {
      join(&peers_.ids, 0, 0, true);
    } else {
      join(s == 0 ? &peers_.ids : nullptr, 0, last, false);
    }
  }

  // Collective over all ranks; those without an edge in this round pass null. `pair` numbers the
  // round's pairs of stages.
  void join(Edge* edge, int pair, int peer_stage, bool sends) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.maxCTAs = 8;  // SMs that a transfer takes from the computation it hides under
    const int column = layout_.rank % layout_.tp;
    const int color = edge != nullptr ? pair * layout_.tp + column : NCCL_SPLIT_NOCOLOR;
    const ncclComm_t comm = split(color, stage(), &config);
    if (edge == nullptr) return;
    edge->comm = comm;
    edge->peer = peer_stage * layout_.tp + column;
    edge->peer_index = stage() < peer_stage ? 1 : 0;
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriority");
    check_cuda(cudaStreamCreateWithPriority(&edge->stream, cudaStreamNonBlocking, greatest),
        "cudaStreamCreate");
    check_cuda(cudaEventCreateWithFlags(&edge->event, cudaEventDisableTiming), "cudaEventCreate");
    const Buffer word = device_.allocate(8, "a start-up message");
    check_nccl(sends ? ncclSend(word.data(), 8, ncclUint8, edge->peer_index, comm, edge->stream)
                     : ncclRecv(word.data(), 8, ncclUint8, edge->peer_index, comm, edge->stream),
        "a first message");
    check_cuda(cudaStreamSynchronize(edge->stream), "a first message");
  }

  NcclLayout layout_;
  CudaDevice& device_;
  Buffer abort_;  // host
  TpGroup tp_;
  Peers peers_;
  std::vector<ncclComm_t> comms_;  // the world's first
  std::atomic<const char*> step_ = "";
};

}  // namespace

std::unique_ptr<NcclWorld> NcclWorld::start(
    const NcclLayout& layout, CudaDevice& device, const Broadcast& broadcast) {
  auto world = std::make_unique<World>(layout, device);
  if (layout.tp * layout.pp == 1) return world;
  ncclUniqueId id{};
  if (layout.rank == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  const auto* begin = reinterpret_cast<const uint8_t*>(&id);
  const Bytes bytes = broadcast(Bytes(begin, begin + sizeof(id)));
  CHECK(bytes.size() == sizeof(id), "an NCCL id of {} bytes", bytes.size());
  std::memcpy(&id, bytes.data(), sizeof(id));
  // On a thread of its own: NCCL waits for the other ranks without an end.
  std::packaged_task<void()> task([&world = *world, id] { world.connect(id); });
  std::future<void> connected = task.get_future();
  std::thread(std::move(task)).detach();
  if (connected.wait_for(std::chrono::seconds(layout.timeout_s)) != std::future_status::ready) {
    const char* step = world.release()->step();  // the thread still uses it; the process ends
    throw Error(ExitCode::kAddress,
        "rank {}: NCCL was still {} after {} s: another rank has failed or cannot be "
        "reached (NCCL_DEBUG=INFO says more, NCCL_SOCKET_IFNAME chooses the network)",
        layout.rank, step, layout.timeout_s);
  }
  connected.get();
  return world;
}

}  // namespace millrace
