"""Record a camera and what belongs to it: `ros2 launch lix_ros record.launch.py image:=/front/image_raw mode:=keyframes`.

Topics that nobody publishes are left out until somebody does. Arguments that are left empty leave the matter to the parameter file. To
include this file more than once, wrap each inclusion in a GroupAction (see demo.launch.py), or its arguments reach the next one.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from lix_ros.paths import share_directory, transport_environment

CONFIG = share_directory() / "config"
PARAMETER_TYPES = {"folder": str, "mode": str, "disagreement": float, "storage": str, "extra": str, "use_sim_time": bool}

ARGUMENTS = [
    DeclareLaunchArgument("name", default_value="logger", description="Name of the node."),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of every relative topic name."),
    DeclareLaunchArgument("image", default_value="camera/image_raw", description="Topic of the images (JPEG: <image>/compressed)."),
    DeclareLaunchArgument("camera_info", default_value="", description="Topic of the calibration; empty: camera_info beside the image."),
    DeclareLaunchArgument("right", default_value="right/image_raw", description="Topic of the right images of a stereo pair."),
    DeclareLaunchArgument("right_camera_info", default_value="", description="Their calibration; empty: camera_info beside them."),
    DeclareLaunchArgument("depth", default_value="depth", description="Topic of depth images, registered to the camera."),
    DeclareLaunchArgument("depth_camera_info", default_value="", description="Their calibration; empty: camera_info beside them."),
    DeclareLaunchArgument("points", default_value="points", description="Topic of the LiDAR's clouds."),
    DeclareLaunchArgument("labels", default_value="labels", description="Topic of true labels (mono8), where there are any."),
    DeclareLaunchArgument("label_names", default_value="label_names", description="Topic of what they mean."),
    DeclareLaunchArgument("student", default_value="segmentation", description="Segmentation node: its confidence makes keyframes."),
    DeclareLaunchArgument(
        "teacher", default_value="teacher", description="Teacher node: its disagreement makes keyframes, where `disagreement` is above 0."
    ),
    DeclareLaunchArgument("folder", default_value="", description="Folder of the bags."),
    DeclareLaunchArgument("mode", default_value="", description="everything, rate or keyframes."),
    DeclareLaunchArgument(
        "disagreement",
        default_value="",
        description="Share of pixels on which student and teacher differ, at which an image is kept; 0: off.",
    ),
    DeclareLaunchArgument("storage", default_value="", description="mcap or sqlite3."),
    DeclareLaunchArgument("extra", default_value="", description="Further topics, separated by spaces."),
    DeclareLaunchArgument("params_file", default_value=str(CONFIG / "record.yaml"), description="Parameter file of the node."),
    DeclareLaunchArgument("use_sim_time", default_value="", description="true: time comes from /clock, as in simulation."),
    DeclareLaunchArgument(
        "transport",
        default_value="",
        description="How Fast DDS carries images: lix (config/fastdds.xml, unless the environment has "
        "another profile), default, or the path of a profile; empty: $LIX_TRANSPORT, or else lix.",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="Log level of the node: debug, info, warn, error or fatal."),
]


def beside(image: str) -> str:
    """camera_info where drivers publish it."""
    return "/".join([*image.split("/")[:-1], "camera_info"])


def make_nodes(context: LaunchContext) -> list:
    arguments = {a.name: context.launch_configurations[a.name] for a in ARGUMENTS}
    given = {p: ParameterValue(LaunchConfiguration(p), value_type=t) for p, t in PARAMETER_TYPES.items() if arguments[p]}
    image, right, depth = (arguments[topic].rstrip("/") for topic in ("image", "right", "depth"))
    remappings = {
        **{"image": image, "image/compressed": f"{image}/compressed", "camera_info": arguments["camera_info"] or beside(image)},
        **{"right/image": right, "right/image/compressed": f"{right}/compressed"},
        "right/camera_info": arguments["right_camera_info"] or beside(right),
        "depth": depth,
        "depth/camera_info": arguments["depth_camera_info"] or beside(depth),
        **{topic: arguments[topic] for topic in ("points", "labels", "label_names")},
        "confidence": f"{arguments['student'].rstrip('/')}/confidence",
        "disagreement": f"{arguments['teacher'].rstrip('/')}/disagreement",
    }
    node = Node(
        package="lix_ros",
        executable="logger",
        name=arguments["name"],
        namespace=arguments["namespace"],
        parameters=[arguments["params_file"], *([given] if given else [])],
        remappings=list(remappings.items()),
        ros_arguments=["--log-level", arguments["log_level"]],
        # The environment of the node alone is changed: whoever includes this file keeps the transport they have.
        additional_env=transport_environment(arguments["transport"], context.environment),
        output="screen",
        emulate_tty=True,
        # Seconds until it is sent SIGTERM, and 5 s later SIGKILL: a slow disk takes long for all that waits for it.
        sigterm_timeout=LaunchConfiguration("sigterm_timeout", default="60"),
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=make_nodes)])
