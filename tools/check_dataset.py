"""Read a whole data set as a configuration would, and report everything that is wrong with it."""

from paddleseg_segformer.engine import cli
from paddleseg_segformer.engine.dataset_check import check_datasets


def parse_args():
    parser = cli.config_parser(
        __doc__,
        "--config configs/segformer_mit-b2_512x512_160k_ade20k.yaml",
    )
    parser.add_argument("--num_workers", type=cli.positive, help="threads; one for each CPU")
    return parser.parse_args()


def main():
    options = vars(parse_args())
    config = cli.start(options)
    check_datasets(config, **options)


if __name__ == "__main__":
    cli.run(main)
