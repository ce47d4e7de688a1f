// As an Arduino sketch, after `make`: copy build/sparse/network.h and build/images.h beside this file.
#include "images.h"
#include "network.h"

void setup() { Serial.begin(115200); }

void loop() {
  static int image = 0;
  float x[64], y[10];
  for (int i = 0; i < 64; ++i) x[i] = (images[image][i] - 4.884f) / 6.017f;
  network_predict(x, y);
  int most = 0;
  for (int i = 1; i < 10; ++i) most = y[i] > y[most] ? i : most;
  Serial.print("predicted ");
  Serial.print(most);
  Serial.print(", is ");
  Serial.println(labels[image]);
  image = (image + 1) % IMAGES;
  delay(1000);
}
