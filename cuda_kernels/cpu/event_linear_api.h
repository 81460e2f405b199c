// What the bindings hand to event_linear.cpp. Spikes travel as bits: row r has `words` = (inputs + 63) / 64 words of 64 inputs.
//
// Weights lie in panels: columns in groups of 64 (the last one cut to a multiple of 16, filled with zeros), each group [inputs, width],
// so that a panel stays in L2 while all rows pass over it, whatever power of two the matrix is wide. Between panels lies a gap:
// without it what one spike reads of each panel would fall into the same few sets of a cache, and a batch of one would never be met by it.
#pragma once

constexpr long long PANEL_GAP = 1280;  // bytes: 20 lines, since a spike reads 4 of a panel of floats

struct EventCall {
    const void* x;                 // [rows, inputs], stride x_stride between rows; null where every spike is 1 and bits say it all
    long long x_stride;
    unsigned long long* bits;      // [rows, words]
    long long* counts;             // [rows]: spikes of each row
    int* per_input;                // [threads, inputs], zeroed: spikes of each input over the rows; null: nobody wants to know
    long long limit;               // more spikes than this: stop counting, return -1
    const long long* offsets;      // [rows + 1]: where each row's list begins
    unsigned int* lists;           // indices of the spikes, row after row (room for 16 more)
    const void* panels;            // [inputs × outputs] in panels, panel_items(…) numbers
    const void* bias;              // [outputs] or null
    void* y;                       // [rows, outputs]
    long long rows, inputs, outputs;
    int dtype;                     // 0 float, 1 double, 2 bf16 (sums in float)
    int threads;
};

// weight [outputs, inputs] with strides in items -> panels.
struct PanelCall {
    const void* weight;
    long long row_stride, column_stride;
    long long inputs, outputs;
    void* panels;
    int dtype, threads;
};

// grad_weight [outputs, inputs] = grad_yᵀ · x from the transposed spikes: for each input, the rows in which it was active.
struct WeightGradCall {
    const unsigned long long* bits;  // [rows, words]
    unsigned long long* turned;      // [inputs, (rows + 63) / 64]
    long long* counts;               // [inputs]
    const long long* offsets;        // [inputs + 1]
    unsigned int* lists;
    const void* x;                   // [rows, inputs] or null where every spike is 1
    long long x_stride;
    const void* grad_y;              // [rows, outputs] with strides in items
    long long row_stride, column_stride;
    void* panels;                    // [threads, rows × 64]: the columns of grad_y that a thread gathers, side by side
    void* grad_weight;
    long long rows, inputs, outputs;
    int dtype, threads;
};

// grad_x [rows, inputs] = grad_y · weight where the surrogate derivative of the neuron that sent the input is not zero, 0 elsewhere.
struct InputGradCall {
    const void* membrane;            // [rows, inputs] before the spike: float or double as the sums, or 16-bit codes (saved.h)
    bool codes;
    double threshold, reach;         // the derivative is zero from |membrane - threshold| = reach on
    double most;                     // give up if more than this share of the derivatives is not zero
    const void* panels;              // of the weight
    const void* grad_y;              // [rows, outputs]
    void* grad_x;
    unsigned int* lists;             // [threads, inputs + 16]
    void* grads;                     // [threads, outputs, to a multiple of 16]: a row of grad_y in the type of the sums
    long long rows, inputs, outputs;
    int dtype, threads;
};

struct EventTable {
    long long (*panel_items)(long long inputs, long long outputs, int dtype);
    long long (*count)(const EventCall&);  // fills bits and counts; spikes·2 + (are all exactly 1), or -1 beyond the limit
    void (*list)(const EventCall&);        // fills lists from bits and offsets
    void (*forward)(const EventCall&);
    bool (*pack)(const PanelCall&);        // whether every weight is finite
    void (*turn)(const WeightGradCall&);   // fills turned and counts
    void (*turned_list)(const WeightGradCall&);
    bool (*weight_grad)(const WeightGradCall&);  // false: grad_y is not finite, grad_weight not complete
    bool (*input_grad)(const InputGradCall&);  // false: gave up
};
