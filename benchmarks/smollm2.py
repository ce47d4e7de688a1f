"""SmolLM2-135M, a language model, pruned for real: perplexity on the Brown corpus, one-shot and after sparse fine-tuning.

    pip install truesparse transformers accelerate gguf
    python benchmarks/smollm2.py one-shot --results smollm2.jsonl
    python benchmarks/smollm2.py recover --results smollm2.jsonl --sparsity 0.5

The 210 linear layers of the decoder are pruned, in float32; the embeddings, which are the output layer too, stay. Texts 0, 10, 20, ... of
the corpus are test, the others training. The first 512 tokens of the first 16 test texts are scored, the mean over all tokens that are
predicted; the first 32 training texts calibrate, and sparse fine-tuning, where the dense model's answers are the target, sees training
texts only. Each result is a line of --results; a result that is there already is not made again.
"""
