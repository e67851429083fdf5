"""Fine-tuning the CNN that comes with the package.

It was trained on 60,000 pictures of clothes. What its convolutions have learnt about edges and
shapes helps with handwritten digits, too, if there are few of them: here five of each. The
convolutions stay as they are, so their features are computed once and only the dense layers learn.
"""

import numpy as np
from tinygrad_nnfs.models.cnn import CNN
from tinygrad_nnfs.models.networks import SHIPPED, load_model, shipped

from tinygrad_nnfs import data, manual_seed, nn, no_grad, optim
from tinygrad_nnfs.ops import softmax_cross_entropy

digits = data.load("digits")
few = np.concatenate([np.flatnonzero(digits.train_labels == k)[:5] for k in range(10)])
images, labels = data.scale(digits.train_images[few]), digits.train_labels[few]
test_images = data.scale(digits.test_images)


def learn(head, features, epochs=60):
    """Train `head` on the few images' features, 10 at a time."""
    order = np.random.default_rng(0)
    optimizer = optim.Adam(head.parameters(), lr=0.001)
    for _ in range(epochs):
        for batch in order.permutation(len(labels)).reshape(-1, 10):
            loss = softmax_cross_entropy(head(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(network, inputs):
    with no_grad():
        predicted = network.eval()(inputs).numpy().argmax(axis=1)
    return f"{(predicted == digits.test_labels).mean():.1%} of {len(predicted)} test images"


manual_seed(0)
network, _ = load_model(shipped(SHIPPED))
convolutions = network[:11]  # up to and with nn.Flatten
head = nn.Sequential(nn.Dropout(0.5), nn.Linear(3200, 10))
with no_grad():
    features, test_features = convolutions(images).numpy(), convolutions(test_images).numpy()
learn(head, features)
print("fine-tuned:  ", accuracy(head, test_features))

fresh = CNN()
learn(fresh, images)
print("from scratch:", accuracy(fresh, test_images))
