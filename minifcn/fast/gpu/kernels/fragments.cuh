// How a warp multiplies two tiles in shared memory on the tensor cores.
//
// Both tiles are rows of 128 bytes, the summed index innermost: 32 floats, or 64 halves. A row is 8 chunks of 16 bytes, and
// chunk c of row r lies at place c ^ (r % 8), so that the eight rows that one ldmatrix reads lie in different banks:
//
//     row 0   0 1 2 3 4 5 6 7         an ldmatrix of chunk 0 of rows 0 .. 7 walks down the diagonal
//     row 1   1 0 3 2 5 4 7 6
//     row 2   2 3 0 1 6 7 4 5   ...

#include "device.cuh"

// Numbers of the operands. A float32 in shared memory is rounded to tf32 (11 bits) on its way into the registers; weights are
// rounded by the kernel that packs them.
struct Tf32 {
  typedef float Weight;
  static constexpr int BYTES = 4;
  static __device__ __forceinline__ unsigned operand(unsigned bits) { return round_tf32(__int_as_float(bits)); }
  static __device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) { mma_tf32(c, a, b); }
};
struct Half {
  typedef unsigned short Weight;
  static constexpr int BYTES = 2;
  static __device__ __forceinline__ unsigned operand(unsigned bits) { return bits; }
  static __device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) { mma_half(c, a, b); }
};

// sums (16*MI x 8*NI) += a b^T over 128 bytes of the summed index, by one warp.
// a: this thread's row lane % 16 of the first 16; the next 16 rows lie `a_step` bytes further; a_key: that row's number % 8.
// b: this thread's row lane % 8 + 8 * (lane / 16) of the first 16, rows side by side, whose number % 8 is lane % 8.
template <class Number, int MI, int NI>
__device__ __forceinline__ void multiply(float (&sums)[MI][NI][4], Shared a, int a_step, int a_key, Shared b) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int k = 0; k < 4; k++) {                            // 32 bytes: one mma deep
    unsigned fa[MI][4], fb[NI][2];
#pragma unroll
    for (int i = 0; i < MI; i++) load_matrices(fa[i], a + i * a_step + (((2 * k + (lane >> 4)) ^ a_key) << 4));
#pragma unroll
    for (int j = 0; j < NI; j += 2) load_matrices(fb[j], b + j * 8 * 128 + (((2 * k + (lane >> 3 & 1)) ^ (lane & 7)) << 4));
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int r = 0; r < 4; r++) fa[i][r] = Number::operand(fa[i][r]);
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int j = 0; j < NI; j++) Number::mma(sums[i][j], fa[i], fb[j]);
  }
}
