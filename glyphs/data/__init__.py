"""From files to batches: EMNIST, folders of pictures, the demo set, augmentation, loaders."""
