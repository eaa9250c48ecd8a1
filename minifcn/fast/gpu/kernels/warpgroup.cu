// The 3 x 3 convolution (stride 1, padding 1) on Hopper's asynchronous tensor core, operands in fp16 or tf32 (sm_90a).
//
// Four warps together ask for a product of 64 filters times 256 pixels, straight from shared memory, and go on while it is
// made:
//
//     warps 0 .. 4G-1     ask for products and store the results       (G groups of four warps, 64 filters each)
//     warp 4G             orders weights, one bulk copy a tap          ring of WEIGHTS stages
//     the rest            fetch pixels, round them                     ring of 2 stages
//
// A tile is 32 rows of 8 pixels. As in patch.cu, its input comes with its border, 128 bytes of channels at a time (64 in fp16,
// 32 in tf32), and serves all nine taps; a tap is another start. That works because the operand is not swizzled:
//
//     pixels[chunk of channels][position] of 16 bytes, position = row * 10 + column
//     8 neighbours of a row are one core of the operand, the next row is the next core: row_step = 10 * 16 bytes,
//     the next chunk lies k_step = POSITIONS * 16 bytes further, and any position can be the start
//
// Images are stacked along their rows, H + 1 rows each: the row between two is the zero padding of both, and a tile may reach
// over it (what it makes there is not stored). Blocks stay and take tile after tile.
// Weights come as (F / 64G, blocks of channels, 9, 8 chunks, 64G, numbers of a chunk), from pack_warpgroup below. Needs whole
// blocks of channels, F % (64 G) == 0.
// Source: PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix Instructions".

#include "common.cuh"
#include "hopper.cuh"

// A chunk of 16 bytes: how it is made of float32, and how two of them in a row are multiplied.
struct HalfChunk {
  typedef unsigned short Number;
  static constexpr int NUMBERS = 8;
  static __device__ __forceinline__ Number rounded(float x) { return round_half(x); }
  static __device__ __forceinline__ void rounded(unsigned* to, const float4* from) {
    to[0] = two_halves(from[0].x, from[0].y), to[1] = two_halves(from[0].z, from[0].w);
    to[2] = two_halves(from[1].x, from[1].y), to[3] = two_halves(from[1].z, from[1].w);
  }
  static __device__ __forceinline__ void mma(float (&d)[128], Operand a, Operand b, int add) {
    warpgroup_mma_half(d, a, b, add);
  }
};
struct Tf32Chunk {
  typedef float Number;
  static constexpr int NUMBERS = 4;
  static __device__ __forceinline__ Number rounded(float x) { return __int_as_float(round_tf32(x)); }
  static __device__ __forceinline__ void rounded(unsigned* to, const float4* from) {
    to[0] = round_tf32(from[0].x), to[1] = round_tf32(from[0].y), to[2] = round_tf32(from[0].z), to[3] = round_tf32(from[0].w);
  }
  static __device__ __forceinline__ void mma(float (&d)[128], Operand a, Operand b, int add) {
    warpgroup_mma_tf32(d, a, b, add);
  }
};

template <class Chunk, int G, int FETCHERS, int WEIGHTS>
__device__ __forceinline__ void warpgroup(const float* x, const typename Chunk::Number* packed, float* y, int N, int H, int W,
                                          int C, int F) {
  constexpr int TH = 32, ROWS = TH + 2, ACROSS = 10, POSITIONS = ROWS * ACROSS | 1;  // odd: chunks start in different banks
  constexpr int FILTERS = 64 * G, PIXELS = 8 * POSITIONS * 16, KERNEL = 8 * FILTERS * 16;  // bytes of a stage
  DYNAMIC_SHARED(char, bytes);
  const Shared weights = shared_address(bytes), pixels = weights + WEIGHTS * KERNEL, barriers = pixels + 2 * PIXELS;
  int* where = (int*)(bytes + WEIGHTS * KERNEL + 2 * PIXELS + 16 * (2 + WEIGHTS));  // of each position, in x; -1: outside
  auto pixels_there = [=](int s) { return barriers + 8 * s; };
  auto pixels_free = [=](int s) { return barriers + 8 * (2 + s); };
  auto weights_there = [=](int s) { return barriers + 8 * (4 + s); };
  auto weights_free = [=](int s) { return barriers + 8 * (4 + WEIGHTS + s); };
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  if (thread == 0) {
    for (int s = 0; s < 2; s++) barrier_make(pixels_there(s), 32 * FETCHERS), barrier_make(pixels_free(s), 4 * G);
    for (int s = 0; s < WEIGHTS; s++) barrier_make(weights_there(s), 1), barrier_make(weights_free(s), 4 * G);
    barriers_made();
  }
  __syncthreads();
  const int stacked = H + 1, strips = (W + 7) / 8, sorts = F / FILTERS, blocks = C / (8 * Chunk::NUMBERS);
  const int tiles = sorts * strips * ((N * stacked + TH - 2) / TH);

  if (warp == 4 * G) {                                                     // ---- weights: one thread
    if (lane == 0)
      for (int tile = blockIdx.x, k = 0; tile < tiles; tile += gridDim.x) {
        const char* from = (const char*)packed + (size_t)(tile % sorts) * blocks * 9 * KERNEL;
        for (int tap = 0; tap < blocks * 9; tap++, k++) {
          barrier_wait(weights_free(k % WEIGHTS), (k / WEIGHTS & 1) ^ 1);
          barrier_arrive_expecting(weights_there(k % WEIGHTS), KERNEL);
          bulk_copy(weights + k % WEIGHTS * KERNEL, from + (size_t)tap * KERNEL, KERNEL, weights_there(k % WEIGHTS));
        }
      }
  } else if (warp > 4 * G) {                                               // ---- pixels
    constexpr int FOURS = Chunk::NUMBERS / 4;                              // float4 of a chunk
    constexpr int PASS = 4 * FETCHERS, AT_ONCE = 16 / FOURS;               // positions of a pass; passes under way
    const int id = thread - 32 * (4 * G + 1), chunk = id % 8;
    for (int tile = blockIdx.x, k = 0; tile < tiles; tile += gridDim.x) {
      const int j0 = tile / sorts % strips * 8, r0 = tile / sorts / strips * TH;
      part_sync<1, 32 * FETCHERS>();
      for (int p = id; p < POSITIONS; p += 32 * FETCHERS) {
        int r = r0 + p / ACROSS - 1, n = r < 0 ? 0 : r / stacked, h = r - n * stacked, s = j0 + p % ACROSS - 1;
        where[p] = p < ROWS * ACROSS && n < N && h >= 0 && h < H && s >= 0 && s < W ? ((n * H + h) * W + s) * C : -1;
      }
      part_sync<1, 32 * FETCHERS>();
      for (int block = 0; block < blocks; block++, k++) {
        const Shared to = pixels + k % 2 * PIXELS + chunk * POSITIONS * 16;
        const float* from = x + (block * 8 + chunk) * Chunk::NUMBERS;
        barrier_wait(pixels_free(k % 2), (k / 2 & 1) ^ 1);
        for (int p = id / 8; p < POSITIONS; p += PASS * AT_ONCE) {
          float4 held[AT_ONCE][FOURS];
#pragma unroll
          for (int q = 0; q < AT_ONCE; q++) {
            const int at = p + q * PASS < POSITIONS ? where[p + q * PASS] : -1;
#pragma unroll
            for (int e = 0; e < FOURS; e++)
              held[q][e] = at < 0 ? make_float4(0.f, 0.f, 0.f, 0.f) : ((const float4*)(from + at))[e];
          }
#pragma unroll
          for (int q = 0; q < AT_ONCE; q++) {
            unsigned bytes[4];
            Chunk::rounded(bytes, held[q]);
            if (p + q * PASS < POSITIONS) store16(to + (p + q * PASS) * 16, bytes);
          }
        }
        stores_to_tensor_core();
        barrier_arrive(pixels_there(k % 2));
      }
    }
  } else {                                                                 // ---- products: 64 filters for each four warps
    const int group = warp >> 2;
    float d[128];
    for (int tile = blockIdx.x, kx = 0, kw = 0; tile < tiles; tile += gridDim.x) {
      for (int block = 0; block < blocks; block++, kx++) {
        const Operand patch = operand(pixels + kx % 2 * PIXELS, POSITIONS * 16, ACROSS * 16);
        barrier_wait(pixels_there(kx % 2), kx / 2 & 1);
#pragma unroll
        for (int tap = 0; tap < 9; tap++, kw++) {
          const Operand kernel = operand(weights + kw % WEIGHTS * KERNEL + group * 64 * 16, FILTERS * 16, 128);
          barrier_wait(weights_there(kw % WEIGHTS), kw / WEIGHTS & 1);
          warpgroup_begin();
#pragma unroll
          for (int c = 0; c < 8; c += 2)                                   // two chunks
            Chunk::mma(d, moved(kernel, c * FILTERS), moved(patch, tap / 3 * ACROSS + tap % 3 + c * POSITIONS),
                       block + tap + c);
          warpgroup_commit();
          warpgroup_wait<1>();                                             // the tap before is done: free what it read
          if (lane == 0 && block + tap > 0) barrier_arrive(weights_free((kw + WEIGHTS - 1) % WEIGHTS));
          if (lane == 0 && block > 0 && tap == 0) barrier_arrive(pixels_free((kx + 1) % 2));
        }
      }
      warpgroup_wait<0>();
      if (lane == 0) barrier_arrive(weights_free((kw + WEIGHTS - 1) % WEIGHTS)), barrier_arrive(pixels_free((kx + 1) % 2));
      const int j = tile / sorts % strips * 8 + lane % 4 * 2, r0 = tile / sorts / strips * TH;
      const int f = tile % sorts * FILTERS + group * 64 + warp % 4 * 16 + lane / 4 * 2;
      int n = r0 / stacked, i = r0 % stacked;
#pragma unroll
      for (int r = 0; r < TH; r++) {
        float* out = y + (((size_t)n * H + i) * W + j) * F + f;
        if (n < N && i < H) {
          if (j < W) *(float2*)out = make_float2(d[4 * r], d[4 * r + 2]);
          if (j + 1 < W) *(float2*)(out + F) = make_float2(d[4 * r + 1], d[4 * r + 3]);
        }
        if (++i == stacked) i = 0, n++;
      }
    }
  }
}

// 64 filters: two blocks on a multiprocessor store in each other's shade. More: two groups share a patch. In tf32 one warp that
// fetches is too slow (0.163 ms for 0.102 of layer1 on an H100), and three leave no room for two blocks: 128 filters alone.

extern "C" __global__ void __launch_bounds__(192, 2)
warpgroup_half_64(const float* x, const unsigned short* packed, float* y, int N, int H, int W, int C, int F) {
  warpgroup<HalfChunk, 1, 1, 3>(x, packed, y, N, H, W, C, F);
}

extern "C" __global__ void __launch_bounds__(384, 1)
warpgroup_half_128(const float* x, const unsigned short* packed, float* y, int N, int H, int W, int C, int F) {
  warpgroup<HalfChunk, 2, 3, 4>(x, packed, y, N, H, W, C, F);
}

extern "C" __global__ void __launch_bounds__(384, 1)
warpgroup_tf32_128(const float* x, const float* packed, float* y, int N, int H, int W, int C, int F) {
  warpgroup<Tf32Chunk, 2, 3, 4>(x, packed, y, N, H, W, C, F);
}

// w (F, C, 3, 3) -> (F / M, blocks of channels, 9, 8 chunks, M, numbers of a chunk), rounded, turned as in pack.cu (then F and
// C are exchanged). Of 16 filters row h*8 + g is filter 2g + h: a thread, which holds rows g and g + 8, then stores two
// neighbours at once.

template <class Chunk>
__device__ __forceinline__ void pack_warpgroup(const float* w, typename Chunk::Number* packed, int F, int C, int M,
                                               int turned) {
  int k = blockIdx.x * T + threadIdx.x;
  if (k >= F * C * 9) return;
  const int inner = turned ? F : C, blocks = inner / (8 * Chunk::NUMBERS), row = k / Chunk::NUMBERS % M;
  const int chunk = k / Chunk::NUMBERS / M % 8, r = k / Chunk::NUMBERS / M / 8, tap = r % 9, block = r / 9 % blocks;
  int c = (block * 8 + chunk) * Chunk::NUMBERS + k % Chunk::NUMBERS;
  int f = r / 9 / blocks * M + row / 16 * 16 + row % 8 * 2 + row / 8 % 2;
  packed[k] = Chunk::rounded(turned ? w[((size_t)c * C + f) * 9 + 8 - tap] : w[((size_t)f * C + c) * 9 + tap]);
}

extern "C" __global__ void pack_warpgroup_half(const float* w, unsigned short* packed, int F, int C, int M, int turned) {
  pack_warpgroup<HalfChunk>(w, packed, F, C, M, turned);
}

extern "C" __global__ void pack_warpgroup_tf32(const float* w, float* packed, int F, int C, int M, int turned) {
  pack_warpgroup<Tf32Chunk>(w, packed, F, C, M, turned);
}
