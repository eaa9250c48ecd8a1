// Runs CUDA C on a CPU: g++ -include cuda_shim.h. Every CUDA thread is a fiber (ucontext); blocks run one after another.
//
// What a GPU leaves open is chosen at random from a seed: which warp runs, for how long, and the order of its threads. Between
// barriers a thread therefore sees the writes of others early, late or never, and a missing __syncthreads() gives a wrong
// result for some seed. Shared memory is NaN when a block starts. A barrier that only part of the threads reaches makes the
// launch return false. Not covered: the weak memory model, bank conflicts, speed, rounding of fused multiply-adds.

#pragma once
#include <setjmp.h>
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>
using std::max;
using std::min;
using std::size_t;

#define __global__
#define __device__
#define __shared__ static __attribute__((section("shared_memory")))    // one section, so that it can be poisoned as a whole
extern "C" char __start_shared_memory[], __stop_shared_memory[];       // made by the linker

struct dim3 { unsigned x, y, z; };
static dim3 blockIdx, blockDim, gridDim;
#define threadIdx (shim::current->index)

namespace shim {
enum State { RUNNABLE, AT_BARRIER, DONE };
struct Fiber { jmp_buf place; State state; dim3 index; std::vector<char> stack; };

static std::vector<Fiber> fibers;
static Fiber* current;
static jmp_buf scheduler;
static std::mt19937 draw(0);
static std::function<void()> kernel;
static bool divergent;

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
  if (!_setjmp(scheduler)) _longjmp(f.place, 1);
}

static void run_block(unsigned threads) {
  for (char* p = __start_shared_memory; p < __stop_shared_memory; p++) *p = (char)0xff;     // NaN in every float
  if (fibers.size() != threads || divergent) {
    fibers = std::vector<Fiber>(threads);
    for (Fiber& f : fibers) f.stack.resize(1 << 15), make(f);
  }
  divergent = false;
  for (unsigned i = 0; i < threads; i++) fibers[i].state = RUNNABLE, fibers[i].index = {i, 0, 0};
  const unsigned warps = (threads + 31) / 32;
  for (;;) {
    unsigned done = 0, waiting = 0;
    for (Fiber& f : fibers) done += f.state == DONE, waiting += f.state == AT_BARRIER;
    if (done == threads) return;
    if (waiting == threads)
      for (Fiber& f : fibers) f.state = RUNNABLE;
    else if (done + waiting == threads) {
      divergent = true;
      return;
    }
    unsigned warp = draw() % warps, first = warp * 32, last = min(first + 32, threads), order[32];
    for (unsigned i = first; i < last; i++) order[i - first] = i;
    std::shuffle(order, order + (last - first), draw);
    for (unsigned i = 0; i < last - first; i++)
      if (fibers[order[i]].state == RUNNABLE) resume(fibers[order[i]]);
  }
}

static bool launch(dim3 grid, dim3 block, std::function<void()> body) {
  kernel = body, gridDim = grid, blockDim = block;
  std::vector<dim3> blocks;
  for (unsigned y = 0; y < grid.y; y++)
    for (unsigned x = 0; x < grid.x; x++) blocks.push_back({x, y, 0});
  std::shuffle(blocks.begin(), blocks.end(), draw);
  for (dim3 b : blocks) {
    blockIdx = b, run_block(block.x);
    if (divergent) return false;
  }
  return true;
}
}  // namespace shim

static float __int_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
static void __syncthreads() { shim::leave(shim::AT_BARRIER); }
extern "C" void shim_seed(unsigned seed) { shim::draw.seed(seed); }
