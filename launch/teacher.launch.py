"""Start the teacher node beside the student, where the robot has depth: `ros2 launch lix_ros teacher.launch.py model:=teacher.lix`.

It takes depth from the geometry node and compares itself with the segmentation node; start those with their own launch files. To
include this file more than once, wrap each inclusion in a GroupAction (see demo.launch.py), or its arguments reach the next one.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from lix_ros.paths import share_directory, transport_environment

CONFIG = share_directory() / "config"
PARAMETER_TYPES = {"model": str, "backend": str, "use_sim_time": bool}

ARGUMENTS = [
    DeclareLaunchArgument("name", default_value="teacher", description="Name of the node: it publishes <name>/mask and so on."),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of every relative topic name."),
    DeclareLaunchArgument(
        "image",
        default_value="camera/image_raw",
        description="Topic of the images that depth is registered to; for the geometry node's, rectified ones.",
    ),
    DeclareLaunchArgument("depth", default_value="geometry/depth", description="Topic of the depth images."),
    DeclareLaunchArgument("camera_info", default_value="geometry/camera_info", description="Topic of the calibration of depth."),
    DeclareLaunchArgument("student", default_value="segmentation", description="Segmentation node to compare with: <student>/mask."),
    DeclareLaunchArgument(
        "model", default_value="", description="Bundle of an RGB + X teacher: a name that `lix models` lists, or a path."
    ),
    DeclareLaunchArgument("backend", default_value="", description="Inference backend: auto, onnxruntime, openvino or torch."),
    DeclareLaunchArgument("params_file", default_value=str(CONFIG / "teacher.yaml"), description="Parameter file of the node."),
    DeclareLaunchArgument("use_sim_time", default_value="", description="true: time comes from /clock, as in simulation."),
    DeclareLaunchArgument(
        "transport",
        default_value="",
        description="How Fast DDS carries images: lix (config/fastdds.xml, unless the environment has "
        "another profile), default, or the path of a profile; empty: $LIX_TRANSPORT, or else lix.",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="Log level of the node: debug, info, warn, error or fatal."),
]


def make_nodes(context: LaunchContext) -> list:
    arguments = {a.name: context.launch_configurations[a.name] for a in ARGUMENTS}
    given = {p: ParameterValue(LaunchConfiguration(p), value_type=t) for p, t in PARAMETER_TYPES.items() if arguments[p]}
    image, student = arguments["image"].rstrip("/"), arguments["student"].rstrip("/")
    remappings = {
        **{"image": image, "image/compressed": f"{image}/compressed"},
        **{topic: arguments[topic].rstrip("/") for topic in ("depth", "camera_info")},
        **{f"student/{topic}": f"{student}/{topic}" for topic in ("mask", "labels")},
    }
    node = Node(
        package="lix_ros",
        executable="teacher",
        name=arguments["name"],
        namespace=arguments["namespace"],
        parameters=[arguments["params_file"], *([given] if given else [])],
        remappings=list(remappings.items()),
        ros_arguments=["--log-level", arguments["log_level"]],
        # The environment of the node alone is changed: whoever includes this file keeps the transport they have.
        additional_env=transport_environment(arguments["transport"], context.environment),
        output="screen",
        emulate_tty=True,
    )
    return [node]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=make_nodes)])
