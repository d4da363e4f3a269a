# MLT on capital cities (paper, Table 1).
dataset, block_size, batch_size = "facts_char", 24, 576
n_layer, n_head, n_embd, mlp_expansion = 6, 6, 384, 4
dropout, weight_decay = 0.2, 0.1
learning_rate, min_lr = 1e-5, 1e-6
