// The end of the two sums of batch norm's gradient (norm.cu, stem.cu): each thread has added up some pixels of its channels,
// and the lanes of a block are added as a tree, always in the same order.
//
//     lane    0 1 2 3 4 5 6 7
//             |_______|              half = 4: lane 0 adds lane 4, ... lane 3 adds lane 7
//             |___|                  half = 2
//             |_|                    half = 1: lane 0 has the sum of all  -> partial[slab][c] = (sum b, sum w inv_std)

template <int V>
__device__ __forceinline__ void add_lanes(const Place& at, const float (&b)[V], const float (&w)[V], const float* inv_std,
                                          float* partial, int C) {
  __shared__ float part_b[V][T], part_w[V][T];
  const int c = at.channel(V);
#pragma unroll
  for (int e = 0; e < V; e++) part_b[e][threadIdx.x] = b[e], part_w[e][threadIdx.x] = w[e];
  for (int half = at.lanes / 2; half; half /= 2) {
    __syncthreads();
    if (at.lane < half)
#pragma unroll
      for (int e = 0; e < V; e++) {
        part_b[e][threadIdx.x] += part_b[e][threadIdx.x + half * at.groups];
        part_w[e][threadIdx.x] += part_w[e][threadIdx.x + half * at.groups];
      }
  }
  if (at.lane == 0 && c < C)
#pragma unroll
    for (int e = 0; e < V; e++) {
      float* out = partial + ((size_t)blockIdx.y * C + c + e) * 2;
      out[0] = part_b[e][threadIdx.x], out[1] = part_w[e][threadIdx.x] * inv_std[c + e];
    }
}
