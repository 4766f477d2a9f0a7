// What a kernel may use: small functions that exist twice, as PTX for nvcc (device_ptx.h) and as host code for the
// emulator (tests/emulator/device.h). A .cu includes this, launch.h, kernels/base and the standard library, no other header.
//
// Built-in names as in CUDA: threadIdx.x, blockIdx.{x,y,z}, blockDim.x, gridDim.{x,y,z}; __global__, __device__,
// __forceinline__, __launch_bounds__, __grid_constant__. Not available: static __shared__ arrays, <<<>>>, other intrinsics.
//
//   types         bf16, f16 {uint16_t bits}; uint2, uint4, float2, float4
//   conversion    to_f32(float | bf16 | f16); from_f32<T>(float), nearest even; pack2<T>(low, high) -> uint32_t and
//                 unpack2<T>(uint32_t) -> float2, T = bf16 | f16, low half = lower address; bits_to_f32, f32_to_bits
//   memory        load_vector<V>(const void*), store_vector(void*, V): aligned 4, 8 or 16 bytes
//                 load_streamed(const void*) -> uint4: 16 bytes of global memory that no kernel writes meanwhile, past L1
//   math          exp2_approx(x), log2_approx(x), divide_approx(a, b): b at most 2^126; rsqrt_exact(x), fma_rn(a, b, c), leading_zeros, count_bits (uint32); the standard library's others
//   shared        T* shared_memory<T>(): the block's dynamic shared memory, 1024-byte aligned, contents undefined
//   launch        wait_for_previous(): once in every kernel, at its beginning; what earlier kernels wrote is there after it. Before
//                 it stand at most calls of prefetch_*() of the same file, each with a comment "Before the wait: ..." that names
//                 what it reads: only what no kernel writes, as the weights and what the host stages. prefetch_line(const void*):
//                 128 bytes to L2, whoever writes them: it gives nothing, and L2 is where all multiprocessors write to
//   barriers      sync_threads(): all threads of the block, at the same place in the source, none has returned
//                 barrier_sync(id 1..15, threads), barrier_arrive(id, threads): named, whole warps
//                 sync_warp(mask)
//   warp          lane_idx(), warp_idx(); shuffle(v, lane), shuffle_xor(v, bits), shuffle_up(v, n), shuffle_down(v, n),
//                 ballot(p), any(p), all(p), all with mask = kFullWarp as last argument; v of 4 or 8 bytes. Every
//                 lane of the mask must call the same function at the same place.
//   atomics       atomic_add, atomic_max, atomic_min, atomic_or, atomic_exchange, atomic_cas: int32, uint32, uint64
//                 (add, max, cas also) and float (add); on global or shared memory; each returns the old value
//                 thread_fence()
//   async copy    cp_async16(shared, global, valid = 16): bytes from `valid` on become 0; cp_async4 likewise;
//                 cp_async_commit(), cp_async_wait<N>(): all but the last N groups of this thread have landed. Others
//                 see them after a barrier.
//   tensor cores  ldmatrix_x4(r[4], row), ldmatrix_x2(r[2], row), ldmatrix_x4_trans, ldmatrix_x2_trans: lane i gives
//                 the address of row i % 8 of matrix i / 8 (16 bytes, aligned)
//                 mma_m16n8k16<T>(d[4], a[4], b[2]): d += a * b, T = bf16 | f16, f32 accumulate
//                 lane = 4 * g + t holds  a: (g, 2t..) (g+8, 2t..) (g, 2t+8..) (g+8, 2t+8..)   b: (k 2t.., n g) (k 2t+8.., n g)
//                 d: (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//                 mma_m16n8k16_f32(d[4], a[8], b[4]): the same places in f32, for the f32 kernels of the tests
//   warpgroups    kHasWgmma: the code is for a card that has them (sm_90a); nothing of this part is called elsewhere but stop_kernel().
//                 Threads 128 i to 128 i + 127 call the same function at the same place. wgmma_shared<T>(d[n][4], a, b, accumulates): d [64, 8 n] = a b, or +=, with
//                 a [64, 16] and b^T [8 n, 16] rows in shared memory, n = 8, 16; wgmma_registers<T>(d[n][4], a[4], b): += with b [16, 8 n] rows in
//                 shared memory, n = 8, 12, 16, 32. Warp w of the group holds rows 16 w to 16 w + 15 of a and d as mma_m16n8k16 does
//                 (d[i]: columns 8 i to 8 i + 7). Both are on their way until a wait; before it nobody touches d, a or the shared memory.
//                 wgmma_tile(p, leading_bytes, stride_bytes) -> uint64_t: an operand in shared memory in panels of 128-byte rows, their 16-byte
//                 pieces changed by XOR with row % 8, p 1024-byte aligned; stride: from 8 rows to the next 8, leading: from a panel to the next
//                 (b of wgmma_registers). wgmma_advance(tile, bytes): the same further on: 16 columns (32 bytes), 16 rows, a panel.
//                 wgmma_fence(registers...): before the first product over registers that anything else has written;
//                 wgmma_commit(), wgmma_wait<N>(registers...): all but the last N groups are through; `registers` may be read from then on.
//                 fence_proxy_async(): what this thread wrote to shared memory, by cp.async too (after its wait), is there for wgmma behind the next barrier
//                 give_registers<N>(), take_registers<N>(): a thread has N registers from here on, fewer or more than before: multiples of 8,
//                 24 to 256, all threads of the block together no more than at the launch; whole warpgroups, each a branch of its own to the end
//                 stop_kernel(): the launch fails
// Type-generic tiles over these, f32 included: tile.h.
#pragma once

#if defined(__CUDACC__)
#include "kernels/cuda/device_ptx.h"
#include "kernels/cuda/device_wgmma.h"
#else
#include <emulator/device.h>
#include <emulator/device_wgmma.h>
#endif
