from vector_sets import image, make_dataset, make_folder, text

__all__ = ["image", "make_dataset", "make_folder", "text"]
