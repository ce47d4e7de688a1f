/* Reads the test images through the network, and says how many it knows. The same file runs on a board, under qemu and at home. */
#include <stdio.h>

#include "images.h"
#include "network.h"

int main(void)
{
    int right = 0;
    for (int image = 0; image < IMAGES; ++image) {
        float x[64], y[10];
        int most = 0;
        for (int i = 0; i < 64; ++i)
            x[i] = ((float)images[image][i] - 4.884f) / 6.017f; /* as in training: tasks/digits_mlp.py */
        if (network_predict(x, y) != 0)
            return 1;
        for (int i = 1; i < 10; ++i)
            most = y[i] > y[most] ? i : most;
        right += most == labels[image];
        if (image < 5)
            printf("image %d: predicted %d, is %d\n", image, most, labels[image]);
    }
    printf("%d of %d test images are right: %d.%02d %%\n", right, IMAGES, right * 100 / IMAGES, right * 10000 / IMAGES % 100);
    return 0;
}
