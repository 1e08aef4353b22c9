#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;

// y[32][32] = x[32][32] w[32][32]^T by one simdgroup: what the tile kernels ask of tensor operations, in small.
kernel void probe(device half* x [[buffer(0)]], device half* w [[buffer(1)]], device float* y [[buffer(2)]],
                  threadgroup half* shared [[threadgroup(0)]], uint t [[thread_index_in_threadgroup]]) {
    threadgroup half* xs = shared;
    threadgroup half* ws = shared + 32 * 32;
    for (uint i = t; i < 32 * 32; i += 32) {
        xs[i] = x[i];
        ws[i] = w[i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    auto tx = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(xs, dextents<int, 2>(32, 32));
    auto tw = tensor<threadgroup half, dextents<int, 2>, tensor_inline>(ws, dextents<int, 2>(32, 32));
    constexpr auto product = matmul2d_descriptor(32, 32, 32, false, true, false, matmul2d_descriptor::mode::multiply_accumulate);
    matmul2d<product, execution_simdgroup> mm;
    auto sum = mm.get_destination_cooperative_tensor<decltype(tx), decltype(tw), float>();
    for (uint16_t i = 0; i < sum.get_capacity(); i++) if (sum.is_valid_element(i)) sum[i] = 0.0f;
    mm.run(tx, tw, sum);
    auto ty = tensor<device float, dextents<int, 2>, tensor_inline>(y, dextents<int, 2>(32, 32));
    sum.store(ty);
}
