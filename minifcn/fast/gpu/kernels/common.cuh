// What all kernels share. One rule holds for all of them: each element of a result is written by one thread, which reads all
// that it needs for it (a gather). So no two threads write to one address, no atomics are needed, and the result does not
// depend on the order of the threads. Sizes need not be multiples of anything: an `if` in each kernel handles the rest.
//
// Images are channels last, (N, H, W, C) in memory: a pixel's channels lie side by side, and neighbouring threads take
// neighbouring channels.

#define T 256                                              // threads of a block, unless the kernel says otherwise
#define MINUS_INFINITY __int_as_float(0xff800000)          // NVRTC has no <math.h>

// A pixel at padded row r = h + P is read by the windows i with 0 <= r - i*S <= D*(K-1), at tap u = (r - i*S) / D:
//
//     S = 2, K = 3     window 0  |u0 u1 u2|             row 2 is tap 2 of window 0 and tap 0 of window 1,
//                      window 1        |u0 u1 u2|       row 3 is tap 1 of window 1 alone
//                 padded row r    0  1  2  3  4
//
// first_window(r) .. last_window(r) are those i: ceil(K/S) of them, 2 even for the 64 x 64 stride-32 head. span = D*(K-1).

__device__ __forceinline__ int first_window(int r, int span, int S) { return r <= span ? 0 : (r - span + S - 1) / S; }
__device__ __forceinline__ int last_window(int r, int S, int O) { return min(r / S, O - 1); }

// V = 4 channels of a pixel, or V = 1 where C is no multiple of four: one load, one store.
template <int V> struct Channels;
template <> struct Channels<4> {
  float v[4];
  __device__ __forceinline__ Channels() {}
  __device__ __forceinline__ explicit Channels(const float* p) {
    float4 q = *(const float4*)p;
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
  }
  __device__ __forceinline__ void store(float* p) const { *(float4*)p = make_float4(v[0], v[1], v[2], v[3]); }
};
template <> struct Channels<1> {
  float v[1];
  __device__ __forceinline__ Channels() {}
  __device__ __forceinline__ explicit Channels(const float* p) { v[0] = *p; }
  __device__ __forceinline__ void store(float* p) const { *p = v[0]; }
};

// Where a thread of a block of T stands: `group` of channels, `lane` among the pixels.
struct Place {
  int groups, lanes, group, lane;                          // groups of V channels in this block, a power of two up to 32
  __device__ __forceinline__ Place(int C, int V) {
    groups = 1;
    while (groups < 32 && groups * V < C) groups *= 2;
    lanes = T / groups, group = threadIdx.x % groups, lane = threadIdx.x / groups;
  }
  __device__ __forceinline__ int channel(int V) const { return (blockIdx.x * groups + group) * V; }
};
