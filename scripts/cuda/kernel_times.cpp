// Tells how much of the GPU's time is kernels, where there is no nsys: a library that the CUDA driver loads into a program (CUDA_INJECTION64_PATH), which
// records through CUPTI and writes a table to standard error when the program ends.
//
//     pip download --no-deps nvidia-cuda-cupti nvidia-cuda-runtime nvidia-cuda-crt      (unpacked together: CU13 is nvidia/cu13)
//     g++ -O2 -shared -fPIC -I CU13/include scripts/cuda/kernel_times.cpp -o libkernel_times.so -L CU13/lib -l:libcupti.so.13
//     CUDA_INJECTION64_PATH=$PWD/libkernel_times.so LD_LIBRARY_PATH=CU13/lib KERNEL_TIMES_MS=100 mlxn bench model FILE --device cuda -p 0 -n 256 -r 1
//
// KERNEL_TIMES_MS: the last so many milliseconds of work are looked at. KERNEL_TIMES=graphs records whole graphs instead of their kernels, which changes their
// timing least. Kernels that overlap count once; one that is up early and waits for the one before is running.

#include <cupti.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

struct Span {
    uint64_t start, end;
    std::string name;
};
std::mutex mutex;
std::vector<Span> spans;

// The function's name without namespaces, template arguments and parameters.
std::string short_name(const char* mangled) {
    std::string name = mangled ? mangled : "?";
    if (name.rfind("_Z", 0) != 0) return name;
    size_t at = 2;
    while (at < name.size() && !isdigit(name[at])) at++;
    const size_t length = strtoul(name.c_str() + at, nullptr, 10);
    while (at < name.size() && isdigit(name[at])) at++;
    return name.substr(at, length);
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* bytes, size_t* most_records) {
    *bytes = 8 << 20, *most_records = 0;
    *buffer = static_cast<uint8_t*>(aligned_alloc(8, *bytes));
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
    const std::lock_guard<std::mutex> lock(mutex);
    CUpti_Activity* record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
            spans.push_back({kernel->start, kernel->end, short_name(kernel->name)});
        } else if (record->kind == CUPTI_ACTIVITY_KIND_GRAPH_TRACE) {
            const auto* graph = reinterpret_cast<const CUpti_ActivityGraphTrace2*>(record);
            spans.push_back({graph->start, graph->end, "graph"});
        }
    }
    free(buffer);
}

void report() {
    cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    const std::lock_guard<std::mutex> lock(mutex);
    if (spans.empty()) {
        fprintf(stderr, "kernel_times: nothing was recorded\n");
        return;
    }
    std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
    uint64_t last = 0;
    for (const Span& span : spans) last = std::max(last, span.end);
    const char* ms = getenv("KERNEL_TIMES_MS");
    const uint64_t window = uint64_t((ms ? atof(ms) : 100) * 1e6), from = last > window ? last - window : 0;
    uint64_t first = 0, covered = 0, busy = 0;
    size_t count = 0;
    struct Total { uint64_t ns; size_t count; };
    std::map<std::string, Total> totals;
    std::vector<uint64_t> gaps;
    for (const Span& span : spans) {
        if (span.start < from) continue;
        if (count++ == 0) first = covered = span.start;
        else if (span.start > covered) gaps.push_back(span.start - covered);
        const uint64_t start = std::max(span.start, covered);
        if (span.end > start) busy += span.end - start, covered = span.end;
        totals[span.name].ns += span.end - span.start, totals[span.name].count++;
    }
    const double all = double(last - first);
    fprintf(stderr, "kernel_times: %zu of %zu records, %.3f ms, of which %.3f ms (%.1f %%) nothing runs\n", count, spans.size(), all / 1e6, (all - double(busy)) / 1e6, 100 * (1 - double(busy) / all));
    std::sort(gaps.rbegin(), gaps.rend());
    if (!gaps.empty()) fprintf(stderr, "  pauses: %zu, median %.2f us, longest %.1f us\n", gaps.size(), double(gaps[gaps.size() / 2]) / 1e3, double(gaps[0]) / 1e3);
    std::vector<std::pair<std::string, Total>> sorted(totals.begin(), totals.end());
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.ns > b.second.ns; });
    for (size_t i = 0; i < std::min<size_t>(sorted.size(), 16); i++)
        fprintf(stderr, "  %-28s %6zu x %8.2f us  %5.1f %%\n", sorted[i].first.c_str(), sorted[i].second.count, double(sorted[i].second.ns) / double(sorted[i].second.count) / 1e3,
                100 * double(sorted[i].second.ns) / all);
}

}  // namespace

// What the driver calls when the program initialises it.
extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
    const char* what = getenv("KERNEL_TIMES");
    const bool graphs = what && strcmp(what, "graphs") == 0;
    if (cuptiActivityRegisterCallbacks(give_buffer, take_buffer) != CUPTI_SUCCESS) return 0;
    if (cuptiActivityEnable(graphs ? CUPTI_ACTIVITY_KIND_GRAPH_TRACE : CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS) return 0;
    atexit(report);
    return 1;
}
