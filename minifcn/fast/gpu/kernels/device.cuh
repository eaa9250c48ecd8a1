// The instructions of tensor cores and asynchronous copies, for which C++ has no words: one function each, nothing else.
//
// tests/fast/gpu/cuda_shim.h has the same functions for a CPU, so this is the one file of the kernels that only a GPU runs.
// Source: PTX ISA 8.0, sections "Data Movement", "Warp-Level Matrix Instructions". mma.sync needs sm_80 (Ampere) or later.

#ifdef __CUDACC__
typedef unsigned Shared;                                                   // a byte address in shared memory
#define DYNAMIC_SHARED(type, name) \
  extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
  type* name = (type*)dynamic_shared

__device__ __forceinline__ Shared shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory behind the thread's back; zeros, and nothing is read, where !inside. The cached form
// also keeps them in L1, for pixels that neighbouring positions read again.
__device__ __forceinline__ void copy16(Shared to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy16_cached(Shared to, const void* from, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy4(Shared to, const void* from, bool inside) {          // 4 bytes
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void copies_wait() {        // until at most LEFT committed groups are under way
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
__device__ __forceinline__ void store16(Shared to, const unsigned* four) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};"
               ::"r"(to), "r"(four[0]), "r"(four[1]), "r"(four[2]), "r"(four[3]) : "memory");
}

// Four 8 x 16-byte matrices: lane l names row l % 8 of matrix l / 8 and gets, of each, the 4 bytes at row l / 4, place l % 4:
// just as mma.sync wants its operands, for 32-bit and for 16-bit numbers.
__device__ __forceinline__ void load_matrices(unsigned* four, Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(four[0]), "=r"(four[1]), "=r"(four[2]), "=r"(four[3]) : "r"(row) : "memory");
}

// c (16 x 8) += a (16 x K) b (K x 8), spread over the 32 threads of a warp: K = 8 numbers of tf32 or 16 of fp16.
__device__ __forceinline__ void mma_tf32(float* c, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_half(float* c, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rounded to nearest; NaN stays NaN and what is too large becomes infinity.
__device__ __forceinline__ unsigned round_tf32(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
__device__ __forceinline__ unsigned two_halves(float low, float high) {
  unsigned r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ unsigned short round_half(float x) { return (unsigned short)two_halves(x, 0.f); }
#endif
