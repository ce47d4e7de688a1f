typedef struct {
    const NAME_matrix *input, *state; /* with the rows of all gates */
    int steps;
    int every; /* 1: y gets the states of all steps, 0: that of the last */
} NAME_recurrent;
