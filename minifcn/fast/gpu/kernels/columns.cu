// The columns of a convolution, and the way back: what conv.im2col and conv.col2im do, channels last. Exact in float32, any
// kernel, stride, padding and dilation; the product is cuBLAS's. The other convolutions fall back to this one.
//
//     cols[p, k] = x[n, i*SH + u*DH - PH, j*SW + v*DW - PW, c]      p = (n, i, j), k = (u, v, c); zero outside of the image
//
//     row p   | tap (0,0): C channels | tap (0,1): C channels | ...      each tap of a row is a copy of one pixel
//
// y = cols w'^T with w' of shape (F, KH, KW, C). So y is channels last, and nothing is transposed.

#include "common.cuh"

// A thread copies V channels of one tap of one position. size: of the columns.

template <int V>
__device__ __forceinline__ void im2col(const float* x, float* cols, int size, int H, int W, int C, int KH, int KW, int OH,
                                       int OW, int SH, int SW, int PH, int PW, int DH, int DW) {
  int at = (blockIdx.x * T + threadIdx.x) * V, length = KH * KW * C;
  if (at >= size) return;
  int p = at / length, k = at - p * length, j = p % OW, i = p / OW % OH, n = p / OW / OH;
  int c = k % C, v = k / C % KW, u = k / C / KW, h = i * SH + u * DH - PH, s = j * SW + v * DW - PW;
  Channels<V> taken;
  if (h >= 0 && h < H && s >= 0 && s < W) taken = Channels<V>(x + (((size_t)n * H + h) * W + s) * C + c);
  else
    for (int e = 0; e < V; e++) taken.v[e] = 0.f;
  taken.store(cols + at);
}

extern "C" __global__ void im2col_1(const float* x, float* cols, int size, int H, int W, int C, int KH, int KW, int OH, int OW,
                                    int SH, int SW, int PH, int PW, int DH, int DW) {
  im2col<1>(x, cols, size, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW, DH, DW);
}

extern "C" __global__ void im2col_4(const float* x, float* cols, int size, int H, int W, int C, int KH, int KW, int OH, int OW,
                                    int SH, int SW, int PH, int PW, int DH, int DW) {
  im2col<4>(x, cols, size, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW, DH, DW);
}

// A thread takes V channels of one pixel and adds all entries of the columns to which im2col copies this pixel.
// Grid: (rows (n, h), pieces of a row of W*C numbers).

template <int V>
__device__ __forceinline__ void col2im(const float* cols, float* x, int H, int W, int C, int KH, int KW, int OH, int OW,
                                       int SH, int SW, int PH, int PW, int DH, int DW) {
  int q = (blockIdx.y * T + threadIdx.x) * V;
  if (q >= W * C) return;
  int c = q % C, n = blockIdx.x / H, r = blockIdx.x % H + PH, s = q / C + PW;
  int i0 = first_window(r, DH * (KH - 1), SH), i1 = last_window(r, SH, OH);
  int j0 = first_window(s, DW * (KW - 1), SW), j1 = last_window(s, SW, OW);
  Channels<V> sum;
  for (int e = 0; e < V; e++) sum.v[e] = 0.f;
  for (int i = i0; i <= i1; i++) {
    if ((r - i * SH) % DH) continue;
    int u = (r - i * SH) / DH;
    for (int j = j0; j <= j1; j++) {
      if ((s - j * SW) % DW) continue;
      int v = (s - j * SW) / DW;
      Channels<V> one(cols + ((((size_t)n * OH + i) * OW + j) * KH * KW + u * KW + v) * C + c);
      for (int e = 0; e < V; e++) sum.v[e] += one.v[e];
    }
  }
  sum.store(x + (size_t)blockIdx.x * W * C + q);
}

extern "C" __global__ void col2im_1(const float* cols, float* x, int H, int W, int C, int KH, int KW, int OH, int OW, int SH,
                                    int SW, int PH, int PW, int DH, int DW) {
  col2im<1>(cols, x, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW, DH, DW);
}

extern "C" __global__ void col2im_4(const float* cols, float* x, int H, int W, int C, int KH, int KW, int OH, int OW, int SH,
                                    int SW, int PH, int PW, int DH, int DW) {
  col2im<4>(cols, x, H, W, C, KH, KW, OH, OW, SH, SW, PH, PW, DH, DW);
}
