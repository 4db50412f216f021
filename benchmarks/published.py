"""The tutorial's program, written afresh: what the course is compared with.

Same network, same loss, same calls of TensorFlow in the same places, no pictures. `train` is a
generator that stops after each epoch, so that a caller can hold its clock there.
"""

import quiet  # noqa: F401  (before TensorFlow)

import numpy as np
import tensorflow as tf

from vae_course.engine.families import VAE


class PublishedCVAE(tf.keras.Model):
    "Encoder, decoder, and how to pass through them."

    def __init__(self, latent_dim=2):
        super().__init__()
        layers = tf.keras.layers
        up = {"kernel_size": 3, "padding": "same"}
        self.latent_dim = latent_dim
        self.encoder = tf.keras.Sequential([
            layers.InputLayer(shape=(28, 28, 1)),
            layers.Conv2D(32, 3, strides=(2, 2), activation="relu"),
            layers.Conv2D(64, 3, strides=(2, 2), activation="relu"),
            layers.Flatten(),
            layers.Dense(2 * latent_dim),
        ])
        self.decoder = tf.keras.Sequential([
            layers.InputLayer(shape=(latent_dim,)),
            layers.Dense(7 * 7 * 32, activation="relu"),
            layers.Reshape((7, 7, 32)),
            layers.Conv2DTranspose(64, strides=2, activation="relu", **up),
            layers.Conv2DTranspose(32, strides=2, activation="relu", **up),
            layers.Conv2DTranspose(1, strides=1, **up),
        ])

    @tf.function
    def sample(self, eps):
        return self.decode(eps, apply_sigmoid=True)

    def encode(self, x):
        return tf.split(self.encoder(x), num_or_size_splits=2, axis=1)

    def reparameterize(self, mean, logvar):
        return tf.random.normal(shape=tf.shape(mean)) * tf.exp(logvar * 0.5) + mean

    def decode(self, z, apply_sigmoid=False):
        logits = self.decoder(z)
        return tf.sigmoid(logits) if apply_sigmoid else logits


def log_normal(sample, mean, logvar):
    "Log density of a diagonal Gaussian, summed over the code."
    log2pi = tf.math.log(2.0 * np.pi)
    return tf.reduce_sum(
        -0.5 * ((sample - mean) ** 2.0 * tf.exp(-logvar) + logvar + log2pi), axis=1)


def published_loss(model, x):
    "Minus the single-sample ELBO, averaged over the batch."
    mean, logvar = model.encode(x)
    z = model.reparameterize(mean, logvar)
    logits = model.decode(z)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(logits=logits, labels=x)
    log_px_z = -tf.reduce_sum(entropy, axis=[1, 2, 3])
    return -tf.reduce_mean(log_px_z + log_normal(z, 0.0, 0.0) - log_normal(z, mean, logvar))


def make_published_step():
    "The traced step; a fresh one for each run, because its first call makes Adam's variables."
    @tf.function
    def step(model, x, optimizer):
        with tf.GradientTape() as tape:
            loss = published_loss(model, x)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))  # noqa: B905
        return loss  # the tutorial's step returns nothing; a scalar more costs nothing
    return step


def published_dataset(x, batch_size=32):
    "Shuffled again at each pass, as tf.data does by default."
    return tf.data.Dataset.from_tensor_slices(x).shuffle(60000).batch(batch_size)


def published_test_elbo(model, batches):
    "The tutorial's test loop: eager, and a mean of the batches' means."
    mean = tf.keras.metrics.Mean()
    for x in batches:
        mean(published_loss(model, x))
    return -float(mean.result())


def train(train_batches, test_batches, epochs):
    "Yield the model and its test ELBO after each epoch."
    model, optimizer = PublishedCVAE(), tf.keras.optimizers.Adam(1e-4)
    step = make_published_step()
    for _ in range(epochs):
        for x in train_batches:
            step(model, x, optimizer)
        yield model, published_test_elbo(model, test_batches)


def as_ours(model) -> VAE:
    "The same networks as the course's `evaluate` wants them."
    return VAE(model.encoder, model.decoder, model.latent_dim)


def with_weights_of(ours) -> PublishedCVAE:
    "The tutorial's model with the weights of one of the course's."
    model = PublishedCVAE(ours.latent_dim)
    model.encoder.set_weights(ours.encoder.get_weights())
    model.decoder.set_weights(ours.decoder.get_weights())
    return model


def mnist(train: int = 60000, test: int = 10000) -> tuple:
    "The first binarised training and test images, float32."
    from vae_course.data import load_mnist, preprocess_images

    (x_train, _), (x_test, _) = load_mnist()
    return preprocess_images(x_train[:train]), preprocess_images(x_test[:test])
