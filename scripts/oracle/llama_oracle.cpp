// Asks llama.cpp what a model computes, for comparison with ours.
//
//   llama_oracle logits MODEL IDS OUT   f32 logits [tokens, vocabulary] after each token, KV cache in f32
//   llama_oracle greedy MODEL IDS N     N greedy tokens, one a line: id, logit, logit of the runner-up
//
// IDS is a text file of token ids. Built against the llama.cpp that scripts/peers/setup.sh makes:
//   g++ -O2 -std=c++17 -I$LLAMA/include -I$LLAMA/ggml/include llama_oracle.cpp -L$LLAMA/build/bin -lllama -lggml -lggml-base -Wl,-rpath,$LLAMA/build/bin
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "llama.h"

static void fail(const std::string &what) {
    std::fprintf(stderr, "llama_oracle: %s\n", what.c_str());
    std::exit(1);
}

static void quiet(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

// Decodes tokens from position `start` on, with logits after each.
static void decode(llama_context *context, const std::vector<llama_token> &tokens, int start) {
    llama_batch batch = llama_batch_init((int)tokens.size(), 0, 1);
    batch.n_tokens = (int)tokens.size();
    for (int i = 0; i < batch.n_tokens; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = start + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    if (llama_decode(context, batch) != 0) fail("decode failed");
    llama_batch_free(batch);
}

int main(int argc, char **argv) {
    if (argc != 5) fail("usage: llama_oracle logits|greedy MODEL IDS OUT|N");
    const std::string mode = argv[1];
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    llama_model *model = llama_model_load_from_file(argv[2], model_params);
    if (!model) fail("cannot load the model");
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

    std::vector<llama_token> ids;
    std::ifstream file(argv[3]);
    for (long id; file >> id;) ids.push_back((llama_token)id);
    if (ids.empty()) fail("no token ids");
    const int extra = mode == "greedy" ? std::atoi(argv[4]) : 0;

    llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)std::max<size_t>(256, ids.size() + extra + 8);
    params.n_batch = params.n_ubatch = params.n_ctx;
    params.n_threads = params.n_threads_batch = 2;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context *context = llama_init_from_model(model, params);
    if (!context) fail("cannot make a context");

    decode(context, ids, 0);
    if (mode == "logits") {
        std::ofstream out(argv[4], std::ios::binary);
        for (size_t i = 0; i < ids.size(); i++)
            out.write((const char *)llama_get_logits_ith(context, (int)i), vocabulary * sizeof(float));
        if (!out) fail("cannot write the logits");
    } else {
        int at = (int)ids.size() - 1;
        for (int step = 0; step < extra; step++) {
            const float *logits = llama_get_logits_ith(context, at);
            int best = 0, second = -1;
            for (int i = 1; i < vocabulary; i++) {
                if (logits[i] > logits[best]) second = best, best = i;
                else if (second < 0 || logits[i] > logits[second]) second = i;
            }
            std::printf("%d %.6f %.6f\n", best, logits[best], logits[second]);
            decode(context, {best}, (int)ids.size() + step);
            at = 0;
        }
    }
    llama_free(context);
    llama_model_free(model);
    llama_backend_free();
}
