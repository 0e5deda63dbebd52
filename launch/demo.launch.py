"""Play images, a video or a bag as if a camera saw them, segment them and show it all in rviz.

ros2 launch lix_ros demo.launch.py input:=/data/street.mp4 rate:=10.0
"""

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from lix_ros.paths import share_directory, transport_environment

SHARE = share_directory()
REPLAY_TYPES = {"input": str, "topic": str, "rate": float, "loop": bool}

REPLAY_ARGUMENTS = [
    DeclareLaunchArgument(
        "input", default_value="", description="Folder of images, video or rosbag2 bag; empty: the clip that ships with the sources."
    ),
    DeclareLaunchArgument("topic", default_value="", description="Image topic of a bag that has several."),
    DeclareLaunchArgument("rate", default_value="", description="Frames per second; empty: the source's own timing."),
    DeclareLaunchArgument("loop", default_value="true", description="Start again at the end."),
    DeclareLaunchArgument(
        "replay_params_file", default_value=str(SHARE / "config" / "replay.yaml"), description="Parameter file of the replay node."
    ),
]
SHARED_ARGUMENTS = [
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of both nodes and of all topics."),
    DeclareLaunchArgument("model", default_value="", description="Model bundle: a name that `lix models` lists, or a path."),
    DeclareLaunchArgument("backend", default_value="", description="Inference backend: auto, onnxruntime, openvino or torch."),
    DeclareLaunchArgument(
        "params_file", default_value=str(SHARE / "config" / "segmentation.yaml"), description="Parameter file of the segmentation node."
    ),
    DeclareLaunchArgument(
        "transport",
        default_value="",
        description="How Fast DDS carries images: lix, default, or the path of a profile; empty: $LIX_TRANSPORT, or else lix.",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="Log level of both nodes: debug, info, warn, error or fatal."),
    DeclareLaunchArgument("rviz", default_value="true", choices=["true", "false"], description="Show image, classes and overlay in rviz."),
]


def make_replay(context: LaunchContext) -> list:
    arguments = context.launch_configurations
    environment = transport_environment(arguments["transport"], context.environment)
    given = {p: ParameterValue(LaunchConfiguration(p), value_type=t) for p, t in REPLAY_TYPES.items() if arguments[p]}
    return [
        Node(
            package="lix_ros",
            executable="replay",
            name="replay",
            namespace=arguments["namespace"],
            parameters=[arguments["replay_params_file"], *([given] if given else [])],
            remappings=[
                ("image", "camera/image_raw"),
                ("image/compressed", "camera/image_raw/compressed"),
                ("camera_info", "camera/camera_info"),
            ],
            ros_arguments=["--log-level", arguments["log_level"]],
            additional_env=environment,
            output="screen",
            emulate_tty=True,
        ),
        *make_frame(arguments, environment),
    ]


def make_frame(arguments: dict, environment: dict) -> list:
    """rviz knows a frame only from a transform; a lone camera has none, so it is given one."""
    try:
        get_package_prefix("tf2_ros")
    except PackageNotFoundError:
        return []
    if arguments["rviz"] == "false":
        return []
    return [
        Node(
            package="tf2_ros",
            executable="static_transform_publisher",
            namespace=arguments["namespace"],
            arguments=["--frame-id", "map", "--child-frame-id", "camera_optical_frame", "--roll", "-1.5708", "--yaw", "-1.5708"],
            additional_env=environment,
        )
    ]


def generate_launch_description() -> LaunchDescription:
    segmentation = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "segmentation.launch.py")),
        launch_arguments={"image": "camera/image_raw", **{a.name: LaunchConfiguration(a.name) for a in SHARED_ARGUMENTS}}.items(),
    )
    return LaunchDescription([*REPLAY_ARGUMENTS, *SHARED_ARGUMENTS, GroupAction([segmentation]), OpaqueFunction(function=make_replay)])
