// Runs CUDA C on a CPU: g++ -include cuda_shim.h. Every CUDA thread is a fiber (ucontext); blocks run one after another.
//
// What a GPU leaves open is chosen at random from a seed: which warp runs, for how long, and the order of its threads; whether
// an asynchronous copy lands at once or as late as the program allows. Between barriers a thread therefore sees the writes of
// others early, late or never, and a missing barrier or wait gives a wrong result for some seed. Shared memory is NaN when a
// block starts, and so is a band behind what the launch asked for; to Hopper's tensor core what a thread has stored is NaN, too,
// until the thread's fence. A launch returns false after a barrier that only part of the threads reach, a wait that nobody
// ends, a bulk copy that reports to a barrier without a fence behind it, and a product without a fence before it. Not covered:
// the weak memory model, bank conflicts, speed, rounding of fused multiply-adds, the order in which a tensor core adds.
//
// Instructions without a word in C++ are functions in minifcn/fast/gpu/kernels/device.cuh; the same functions stand below.

#pragma once
#include <setjmp.h>
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <vector>
using std::max;
using std::min;
using std::size_t;

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_memory")))    // one section, so that it can be poisoned as a whole
extern "C" char __start_shared_memory[], __stop_shared_memory[];       // made by the linker
__attribute__((section("shared_memory"), used)) static char shim_something_is_shared[16];

struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static dim3 blockIdx, blockDim, gridDim;
#define threadIdx (shim::current->index)

namespace shim {
enum State { RUNNABLE, SPINNING, AT_BARRIER, AT_WARP, DONE };
struct Copy { void* to; const void* from; bool inside; int group, bytes; };
struct Fiber {
  jmp_buf place;
  State state;
  dim3 index;
  std::vector<char> stack;
  std::vector<Copy> copies;             // asynchronous ones that have not landed
  std::vector<size_t> stored;           // pieces of 16 bytes that the tensor core cannot see yet
  bool begun;                           // the registers of a product may be used
  int group, barrier;
};
struct Warp { int arrived; void* given[32]; };

static std::vector<Fiber> fibers;
static std::vector<Warp> warp_slots;
static std::map<int, int> named_barriers;                               // number -> threads that have arrived
static Fiber* current;
static jmp_buf scheduler;
static std::mt19937 draw(0);
static std::function<void()> kernel;
static bool divergent, late_copies, misaligned;
static std::vector<unsigned char> dynamic;
static unsigned char* dynamic_start;
static size_t dynamic_size;
static std::vector<bool> hidden;                                        // of each 16 bytes: the tensor core cannot see them yet
static long idle;                                                       // times that a fiber ran and only waited
static const size_t BAND = 1024;
static unsigned thread() { return current->index.x; }

// A fiber is made once (ucontext) and then entered and left by longjmp, which needs no system call. Between two blocks it
// waits in enter().
static void leave(State state) {
  current->state = state;
  if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

static void enter() {
  for (;;) {
    leave(DONE);
    kernel();
  }
}

static void make(Fiber& f) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = f.stack.data(), context.uc_stack.ss_size = f.stack.size(), context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  current = &f;
  if (!_setjmp(scheduler)) setcontext(&context);
}

static void resume(Fiber& f) {
  current = &f;
  f.state = RUNNABLE;
  if (!_setjmp(scheduler)) _longjmp(f.place, 1);
  idle = f.state == SPINNING ? idle + 1 : 0;
}

static void (*when_idle)() = nullptr, (*at_start)() = nullptr;           // of the bulk copies and barriers below

static void run_block(unsigned threads) {
  for (char* p = __start_shared_memory; p < __stop_shared_memory; p++) *p = (char)0xff;     // NaN in every float
  std::fill(dynamic.begin(), dynamic.end(), 0xff);
  hidden.assign(dynamic.size() / 16, false);
  if (fibers.size() != threads || divergent) {
    fibers = std::vector<Fiber>(threads);
    for (Fiber& f : fibers) f.stack.resize(1 << 16), make(f);
  }
  divergent = false, idle = 0, late_copies = draw() % 2;
  named_barriers.clear();
  const unsigned warps = (threads + 31) / 32;
  warp_slots.assign(warps, Warp());
  if (at_start) at_start();
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].state = RUNNABLE, fibers[i].index = {i, 0, 0}, fibers[i].group = 0;
    fibers[i].copies.clear(), fibers[i].stored.clear(), fibers[i].begun = false;
  }
  for (;;) {
    unsigned done = 0, waiting = 0, stuck = 0;
    for (Fiber& f : fibers) done += f.state == DONE, waiting += f.state == AT_BARRIER, stuck += f.state == AT_WARP;
    if (done == threads) return;
    if (waiting == threads)
      for (Fiber& f : fibers) f.state = RUNNABLE;
    else if (done + waiting + stuck == threads || idle > 20 * (long)threads) {
      if (idle > 20 * (long)threads && when_idle && idle < 100 * (long)threads) when_idle();
      else {
        divergent = true;
        return;
      }
    }
    unsigned warp = draw() % warps, first = warp * 32, last = min(first + 32, threads), order[32];
    for (int turns = 1 + draw() % 8; turns; turns--) {                  // warps drift apart
      for (unsigned i = first; i < last; i++) order[i - first] = i;
      std::shuffle(order, order + (last - first), draw);
      bool ran = false;
      for (unsigned i = 0; i < last - first; i++)
        if (fibers[order[i]].state <= SPINNING) resume(fibers[order[i]]), ran = true;
      if (!ran) break;
    }
  }
}

static bool launch(dim3 grid, dim3 block, size_t shared, std::function<void()> body) {
  kernel = body, gridDim = grid, blockDim = block, dynamic_size = shared, misaligned = false;
  dynamic.assign(shared + BAND + 128, 0xff);
  dynamic_start = (unsigned char*)(((uintptr_t)dynamic.data() + 127) & ~(uintptr_t)127);
  std::vector<dim3> blocks;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) blocks.push_back({x, y, z});
  std::shuffle(blocks.begin(), blocks.end(), draw);
  for (dim3 b : blocks) {
    blockIdx = b, run_block(block.x);
    if (divergent || misaligned) return false;
    for (unsigned char* p = dynamic_start + shared; p < dynamic.data() + dynamic.size(); p++)
      if (*p != 0xff) return false;                                     // wrote behind its shared memory
  }
  return true;
}

// What the 32 threads of a warp do together: the last to arrive does it for all, with what each has given.
template <class F> static void together(void* mine, F work) {
  Warp& warp = warp_slots[thread() / 32];
  warp.given[thread() % 32] = mine;
  if (++warp.arrived < 32) return leave(AT_WARP);
  warp.arrived = 0;
  work(warp.given);
  unsigned first = thread() / 32 * 32;
  for (unsigned i = first; i < first + 32; i++) fibers[i].state = RUNNABLE;
}
}  // namespace shim

static float __int_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }
static unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static void __syncthreads() { shim::leave(shim::AT_BARRIER); }
static float __shfl_xor_sync(unsigned, float value, int other) {
  float mine[2] = {value, 0.f};
  shim::together(mine, [=](void** given) {
    for (int lane = 0; lane < 32; lane++) ((float*)given[lane])[1] = ((float*)given[lane ^ other])[0];
  });
  return mine[1];
}
extern "C" void shim_seed(unsigned seed) { shim::draw.seed(seed); }

// ---- device.cuh ----

typedef unsigned char* Shared;
#define DYNAMIC_SHARED(type, name) type* name = (type*)shim::dynamic_start
static Shared shared_address(const void* p) { return (Shared)p; }

// An asynchronous copy lands at once (a stage that is still being read is then overwritten) or when it is waited for (a wait
// that came too early then reads NaN).
namespace shim {
static void land(const Copy& c) {
  if (c.inside) memcpy(c.to, c.from, c.bytes);
  else memset(c.to, 0, c.bytes);
}
static void copy(Shared to, const void* from, bool inside, int bytes) {
  misaligned |= (uintptr_t)to % bytes || inside && (uintptr_t)from % bytes;
  Copy c = {to, from, inside, current->group, bytes};
  if (late_copies) current->copies.push_back(c);
  else land(c);
}
}  // namespace shim
static void copy16(Shared to, const void* from, bool inside) { shim::copy(to, from, inside, 16); }
static void copy4(Shared to, const void* from, bool inside) { shim::copy(to, from, inside, 4); }
static void copy16_cached(Shared to, const void* from, bool inside) { copy16(to, from, inside); }
static void copies_commit() { shim::current->group++; }
template <int LEFT> static void copies_wait() {
  auto& copies = shim::current->copies;
  size_t k = 0;
  for (; k < copies.size() && copies[k].group < shim::current->group - LEFT; k++) shim::land(copies[k]);
  copies.erase(copies.begin(), copies.begin() + k);
}
static void store16(Shared to, const unsigned* four) {
  shim::misaligned |= (uintptr_t)to % 16;
  memcpy(to, four, 16);
  size_t piece = (to - shim::dynamic_start) / 16;
  if (piece < shim::hidden.size()) shim::hidden[piece] = true, shim::current->stored.push_back(piece);
}

// ldmatrix: lane l names row l % 8 of matrix l / 8 (16 bytes) and gets the 4 bytes at row l / 4, place l % 4 of each matrix.
static void load_matrices(unsigned* four, Shared row) {
  struct Given { unsigned* four; Shared row; } mine = {four, row};
  shim::misaligned |= (uintptr_t)row % 16;
  shim::together(&mine, [](void** given) {
    for (int lane = 0; lane < 32; lane++)
      for (int m = 0; m < 4; m++)
        memcpy(((Given*)given[lane])->four + m, ((Given*)given[m * 8 + lane / 4])->row + lane % 4 * 4, 4);
  });
}

// mma.sync: thread (g = lane / 4, t = lane % 4) holds of A the rows g and g + 8, of B the column g, of C the columns 2t, 2t+1.
namespace shim {
struct Fragments { float* c; const unsigned *a, *b; };
template <int K, class Number> static void mma(float* c, const unsigned* a, const unsigned* b, Number number) {
  Fragments mine = {c, a, b};
  together(&mine, [number](void** given) {
    float A[16][K], B[8][K];
    const int per = K / 8;                                              // numbers in 32 bits: 1 or 2
    for (int lane = 0; lane < 32; lane++) {
      auto* f = (Fragments*)given[lane];
      int g = lane / 4, t = lane % 4;
      for (int e = 0; e < per; e++) {
        for (int r = 0; r < 4; r++) A[g + r % 2 * 8][r / 2 * 4 * per + t * per + e] = number(f->a[r], e);
        for (int r = 0; r < 2; r++) B[g][r * 4 * per + t * per + e] = number(f->b[r], e);
      }
    }
    for (int lane = 0; lane < 32; lane++)
      for (int r = 0; r < 4; r++) {
        float sum = 0.f;
        const float *row = A[lane / 4 + r / 2 * 8], *column = B[lane % 4 * 2 + r % 2];
        for (int k = 0; k < K; k++) sum += row[k] * column[k];
        ((Fragments*)given[lane])->c[r] += sum;
      }
  });
}
static float of_tf32(unsigned bits, int) { return __int_as_float(bits & 0xffffe000u); }    // the hardware ignores the last 13 bits
static float of_half(unsigned bits, int e) { _Float16 h; uint16_t u = bits >> 16 * e; memcpy(&h, &u, 2); return (float)h; }
}  // namespace shim

static void mma_tf32(float* c, const unsigned* a, const unsigned* b) { shim::mma<8>(c, a, b, shim::of_tf32); }
static void mma_half(float* c, const unsigned* a, const unsigned* b) { shim::mma<16>(c, a, b, shim::of_half); }
static unsigned round_tf32(float x) {                                   // to nearest, ties away from zero; NaN and infinity stay
  unsigned bits = __float_as_uint(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}
static unsigned short round_half(float x) { _Float16 h = (_Float16)x; unsigned short u; memcpy(&u, &h, 2); return u; }
static unsigned two_halves(float low, float high) { return round_half(low) | (unsigned)round_half(high) << 16; }

// ---- hopper.cuh ----

// mbarriers live beside the shared memory that they stand for. A bulk copy lands at once, or when all else waits.
namespace shim {
struct Barrier { long count, pending, bytes; unsigned phase; bool made; };
struct Bulk { Shared to; const void* from; unsigned bytes; Shared barrier; };
static std::map<Shared, Barrier> barriers;
static std::vector<Bulk> bulks;
static void settle(Barrier& b) {
  if (b.pending < 0) misaligned = true;                                 // more arrivals than were announced
  if (b.pending == 0 && b.bytes == 0) b.phase++, b.pending = b.count, idle = 0;
}
static void land(Bulk b) {
  memcpy(b.to, b.from, b.bytes);
  barriers[b.barrier].bytes -= b.bytes, settle(barriers[b.barrier]);
}
static void land_all() {
  std::vector<Bulk> now;
  now.swap(bulks);
  for (Bulk& b : now) land(b);
}
struct Product { float* d[128]; uint64_t a[128], b[128]; int add[128], group, bytes; };    // bytes: of a number, 2 or 4
struct Warpgroup { std::vector<Product> asked; int committed, arrived; void* given[128]; };
static std::map<int, Warpgroup> warpgroups;
static void begin_block() { barriers.clear(), bulks.clear(), warpgroups.clear(); }
static const bool hooked = (when_idle = land_all, at_start = begin_block, true);

template <class F> static void four_warps_together(void* mine, F work) {
  Warpgroup& w = warpgroups[thread() / 128];
  w.given[thread() % 128] = mine;
  if (++w.arrived < 128) return leave(AT_WARP);
  w.arrived = 0;
  work(w);
  for (unsigned i = thread() / 128 * 128, end = i + 128; i < end; i++) fibers[i].state = RUNNABLE;
}

static void run_product(Product& p) {
  static float A[64][16], B[256][16];
  const int K = 32 / p.bytes, chunk = 16 / p.bytes;                     // numbers of the summed index, of 16 bytes
  for (int t = 1; t < 128; t++) misaligned |= p.a[t] != p.a[0] || p.b[t] != p.b[0] || !p.add[t] != !p.add[0];
  auto number = [&](uint64_t o, int row, int k) {
    unsigned start = (o & 0x3fff) << 4, k_step = (o >> 16 & 0x3fff) << 4, row_step = (o >> 32 & 0x3fff) << 4;
    size_t at = start + row / 8 * row_step + row % 8 * 16 + k / chunk * k_step + k % chunk * p.bytes;
    if (at + p.bytes > dynamic_size) return misaligned = true, 0.f;
    if (hidden[at / 16]) return NAN;
    unsigned bits = 0;
    memcpy(&bits, dynamic_start + at, p.bytes);
    return p.bytes == 2 ? of_half(bits, 0) : of_tf32(bits, 0);
  };
  for (int k = 0; k < K; k++) {
    for (int row = 0; row < 64; row++) A[row][k] = number(p.a[0], row, k);
    for (int row = 0; row < 256; row++) B[row][k] = number(p.b[0], row, k);
  }
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < 128; i++) {
      const float *a = A[16 * (t / 32) + 8 * (i / 2 % 2) + t % 32 / 4], *b = B[i / 4 * 8 + t % 4 * 2 + i % 2];
      float sum = p.add[t] ? p.d[t][i] : 0.f;
      for (int k = 0; k < K; k++) sum += a[k] * b[k];
      p.d[t][i] = sum;
    }
}
}  // namespace shim

static void barrier_make(Shared barrier, unsigned count) { shim::barriers[barrier] = {count, count, 0, 0, false}; }
static void barriers_made() { for (auto& b : shim::barriers) b.second.made = true; }
static void barrier_arrive(Shared barrier) { shim::Barrier& b = shim::barriers.at(barrier); b.pending--, shim::settle(b); }
static void barrier_arrive_expecting(Shared barrier, unsigned bytes) {
  shim::Barrier& b = shim::barriers.at(barrier);
  b.bytes += bytes, b.pending--, shim::settle(b);
}
static void barrier_wait(Shared barrier, unsigned parity) {
  while (((shim::barriers.at(barrier).phase & 1) ^ 1) != parity) shim::leave(shim::SPINNING);
}
template <int NUMBER, int THREADS> static void part_sync() {
  int ticket = shim::named_barriers[NUMBER]++;
  while (shim::named_barriers[NUMBER] < (ticket / THREADS + 1) * THREADS) shim::leave(shim::SPINNING);
}
static void bulk_copy(Shared to, const void* from, unsigned bytes, Shared barrier) {
  shim::misaligned |= (uintptr_t)to % 16 || (uintptr_t)from % 16 || bytes % 16 || !shim::barriers.at(barrier).made;
  shim::Bulk b = {to, from, bytes, barrier};
  if (shim::late_copies) shim::bulks.push_back(b);
  else shim::land(b);
}
static void stores_to_tensor_core() {
  for (size_t piece : shim::current->stored) shim::hidden[piece] = false;
  shim::current->stored.clear();
}

typedef uint64_t Operand;
static Operand operand(Shared start, unsigned k_step, unsigned row_step) {
  return (uint64_t)((start - shim::dynamic_start) >> 4) | (uint64_t)(k_step >> 4) << 16 | (uint64_t)(row_step >> 4) << 32;
}
static Operand moved(Operand o, int units) { return o + units; }

// A product is made when it is asked for, or when it is waited for: an operand that is freed too early shows in the second.
static void warpgroup_begin() { shim::current->begun = true; }
static void warpgroup_mma(float (&d)[128], Operand a, Operand b, int add, int bytes) {
  struct Given { float* d; Operand a, b; int add, bytes; } mine = {d, a, b, add, bytes};
  shim::misaligned |= !shim::current->begun;
  shim::four_warps_together(&mine, [](shim::Warpgroup& w) {
    shim::Product p;
    for (int t = 0; t < 128; t++) {
      auto* g = (Given*)w.given[t];
      p.d[t] = g->d, p.a[t] = g->a, p.b[t] = g->b, p.add[t] = g->add;
    }
    p.group = w.committed, p.bytes = ((Given*)w.given[0])->bytes;
    if (shim::late_copies) w.asked.push_back(p);
    else shim::run_product(p);
  });
}
static void warpgroup_mma_half(float (&d)[128], Operand a, Operand b, int add) { warpgroup_mma(d, a, b, add, 2); }
static void warpgroup_mma_tf32(float (&d)[128], Operand a, Operand b, int add) { warpgroup_mma(d, a, b, add, 4); }
static void warpgroup_commit() { shim::four_warps_together(nullptr, [](shim::Warpgroup& w) { w.committed++; }); }
template <int LEFT> static void warpgroup_wait() {
  if (LEFT == 0) shim::current->begun = false;                          // what comes now may use the registers
  shim::four_warps_together(nullptr, [](shim::Warpgroup& w) {
    size_t k = 0;
    for (; k < w.asked.size() && w.asked[k].group < w.committed - LEFT; k++) shim::run_product(w.asked[k]);
    w.asked.erase(w.asked.begin(), w.asked.begin() + k);
  });
}
