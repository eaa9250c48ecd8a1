// The 3 x 3 convolution (stride 1, padding 1) that fetches a pixel once for its nine taps.
//
// The implicit GEMM asks the L2 cache for every pixel nine times, and the cache is what limits it. Here a block copies a
// patch of the image with its border, 128 bytes of channels deep, and a tap is only another start in that patch:
//
//     12 x 18 pixels with border        tap (u, v) reads rows u .. u + 9 and columns v .. v + 15 of the same patch
//     +--------------------+
//     | +----------------+ |            10 x 16 output pixels: 94 % of a tile's pixels are real in each layer of a ResNet
//     | |                | |            at 320 x 480 (80 x 120, 40 x 60, 20 x 30, 10 x 15)
//     | +----------------+ |
//     +--------------------+
//
// Pixel (r, s) of the patch is a row of 128 bytes, its chunk c at place c ^ (s % 8) (fragments.cuh). Weights, (F, 3, 3, C),
// pass by in a ring, a tap at a time; the patch of the next channels arrives during the taps of these.
// The gradient gx is the same convolution of gy with the kernel turned by half (pack.cu).
// Half: x is float32 in memory and becomes fp16 on its way to shared memory, once for nine taps. Same mantissa as tf32, half
// the bytes; values beyond 65,504 become infinity.
// Needs C % 32 == 0 (Half: % 64), F % BN == 0. Grid: (tiles of all images, F / BN).

#include "common.cuh"
#include "fragments.cuh"

template <class Number, int BN, int WARPS_M, int WARPS_N, int STAGES>
__device__ __forceinline__ void patch(const float* x, const typename Number::Weight* w_, float* y, int N, int H, int W, int C,
                                      int F) {
  constexpr bool HALF = Number::BYTES == 2;
  constexpr int TH = 10, TW = 16, MI = TH / WARPS_M, WN = BN / WARPS_N, NI = WN / 8, THREADS = WARPS_M * WARPS_N * 32;
  constexpr int R = TH + 2, S = TW + 2, CHUNKS = R * S * 8, PATCH = R * S * 128, ROWS = THREADS / 8;
  constexpr int CHANNELS = 128 / Number::BYTES, SPREAD = HALF ? 9 : 6;     // taps over which the next patch arrives
  constexpr int PER = (CHUNKS + SPREAD * THREADS - 1) / (SPREAD * THREADS);         // chunks of it for a thread and a tap
  DYNAMIC_SHARED(char, bytes);
  const Shared memory = shared_address(bytes);
  const Shared weights = memory + 2 * PATCH;
  const char* w = (const char*)w_;
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, f0 = blockIdx.y * BN, blocks = C / CHANNELS;
  const int across = (W + TW - 1) / TW, down = (H + TH - 1) / TH, n = blockIdx.x / (down * across);
  const int i0 = blockIdx.x % (down * across) / across * TH, j0 = blockIdx.x % across * TW;

  auto source = [&](int block, int chunk, bool& inside) {                  // of a chunk of the patch of a block of channels
    int pixel = chunk >> 3, r = pixel / S, h = i0 - 1 + r, k = j0 - 1 + pixel - r * S;
    inside = chunk < CHUNKS && (unsigned)h < (unsigned)H && (unsigned)k < (unsigned)W;
    return x + (long long)((n * H + h) * W + k) * C + block * CHANNELS + (chunk & 7) * (16 / Number::BYTES);
  };
  auto target = [&](int block, int chunk) {
    int pixel = chunk >> 3;
    return memory + (block & 1) * PATCH + pixel * 128 + (((chunk & 7) ^ (pixel % S & 7)) << 4);
  };
  auto copy = [&](int block, int chunk) {
    bool inside;
    const float* from = source(block, chunk, inside);
    if (chunk < CHUNKS) copy16(target(block, chunk), from, inside);
  };
  float4 held[HALF ? PER : 1][2];                                          // on the way from float32 to fp16
  auto load = [&](int block, int k, int chunk) {
    bool inside;
    const float4* from = (const float4*)source(block, chunk, inside);
    held[k][0] = inside ? from[0] : make_float4(0.f, 0.f, 0.f, 0.f);
    held[k][1] = inside ? from[1] : make_float4(0.f, 0.f, 0.f, 0.f);
  };
  auto store = [&](int block, int k, int chunk) {
    float4 a = held[k][0], b = held[k][1];
    unsigned eight[4] = {two_halves(a.x, a.y), two_halves(a.z, a.w), two_halves(b.x, b.y), two_halves(b.z, b.w)};
    if (chunk < CHUNKS) store16(target(block, chunk), eight);
  };
  const int row = thread >> 3, chunk = thread & 7, pixel_bytes = C * Number::BYTES;
  const char* w_row = w + (size_t)(f0 + row) * 9 * pixel_bytes + chunk * 16;
  auto fetch_weights = [&](int block, int tap, int step) {
    const Shared stage = weights + step % STAGES * BN * 128 + row * 128 + ((chunk ^ (row & 7)) << 4);
#pragma unroll
    for (int m = 0; m < BN / ROWS; m++)
      copy16(stage + m * ROWS * 128, w_row + (size_t)(m * ROWS * 9 + tap) * pixel_bytes + block * 128, true);
  };

  for (int c = thread; c < CHUNKS; c += THREADS)
    if (HALF) load(0, 0, c), store(0, 0, c);
    else copy(0, c);
  for (int tap = 0; tap < STAGES - 1; tap++) fetch_weights(0, tap, tap), copies_commit();
  const int wm = warp / WARPS_N * MI, wn = warp % WARPS_N * WN, b = (wn + (lane & 7) + (lane >> 4) * 8) * 128;
  float sums[MI][NI][4] = {};
  for (int block = 0, step = 0; block < blocks; block++)
    for (int tap = 0; tap < 9; tap++, step++) {
      copies_wait<STAGES - 2>();
      __syncthreads();
      int later = tap + STAGES - 1;
      if (block + later / 9 < blocks) fetch_weights(block + later / 9, later % 9, step + STAGES - 1);
      const bool more = block + 1 < blocks && tap < SPREAD;
      const int first = tap * THREADS + thread;
      if (more)
#pragma unroll
        for (int k = 0; k < PER; k++)
          if (HALF) load(block + 1, k, first + k * SPREAD * THREADS);
          else copy(block + 1, first + k * SPREAD * THREADS);
      copies_commit();
      const int u = tap / 3, v = tap % 3, s = (lane & 15) + v;             // a fragment's 16 rows are a row of 16 pixels
      multiply<Number>(sums, memory + (block & 1) * PATCH + ((wm + u) * S + s) * 128, S * 128, s & 7,
                       weights + step % STAGES * BN * 128 + b);
      if (HALF && more)
#pragma unroll
        for (int k = 0; k < PER; k++) store(block + 1, k, first + k * SPREAD * THREADS);
    }

#pragma unroll
  for (int m = 0; m < MI; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int i = i0 + wm + m, j = j0 + (lane >> 2) + half * 8;
      float* out = y + ((size_t)(n * H + i) * W + j) * F + f0 + wn + (lane & 3) * 2;
#pragma unroll
      for (int q = 0; q < NI; q++)
        if (i < H && j < W) *(float2*)(out + q * 8) = make_float2(sums[m][q][2 * half], sums[m][q][2 * half + 1]);
    }
}

extern "C" __global__ void __launch_bounds__(128, 2)
patch_tf32_64(const float* x, const float* w, float* y, int N, int H, int W, int C, int F) {
  patch<Tf32, 64, 2, 2, 3>(x, w, y, N, H, W, C, F);
}

extern "C" __global__ void __launch_bounds__(128, 2)
patch_tf32_128(const float* x, const float* w, float* y, int N, int H, int W, int C, int F) {
  patch<Tf32, 128, 2, 2, 3>(x, w, y, N, H, W, C, F);
}

extern "C" __global__ void __launch_bounds__(128, 2)
patch_half_64(const float* x, const unsigned short* w, float* y, int N, int H, int W, int C, int F) {
  patch<Half, 64, 2, 2, 3>(x, w, y, N, H, W, C, F);
}
