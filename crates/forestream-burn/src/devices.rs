//! Devices by name: those of this build, the processor first.

use burn_tensor::Device;
#[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal"))]
use burn_tensor::DeviceKind;

/// A kind of device that this build can use.
#[derive(Debug)]
pub struct NamedDevice {
    /// The name that Burn gives it.
    pub name: &'static str,
    /// Whether it has cores that each do a pass of their own. Others want passes that are as large as they can be.
    pub has_cores: bool,
    open: fn() -> Device,
}

/// The devices of this build; Cargo features add to them.
pub static DEVICES: &[NamedDevice] = &[
    NamedDevice { name: "flex", has_cores: true, open: Device::flex },
    #[cfg(feature = "wgpu")]
    NamedDevice { name: "wgpu", has_cores: false, open: || Device::wgpu(DeviceKind::DefaultDevice) },
    #[cfg(feature = "vulkan")]
    NamedDevice { name: "vulkan", has_cores: false, open: || Device::vulkan(DeviceKind::DefaultDevice) },
    #[cfg(feature = "metal")]
    NamedDevice { name: "metal", has_cores: false, open: || Device::metal(DeviceKind::DefaultDevice) },
    #[cfg(feature = "cuda")]
    NamedDevice { name: "cuda", has_cores: false, open: || Device::cuda(0) },
    #[cfg(feature = "rocm")]
    NamedDevice { name: "rocm", has_cores: false, open: || Device::rocm(0) },
];

impl NamedDevice {
    /// The first device of this kind; one that the machine lacks fails when something is computed on it.
    pub fn open(&self) -> Device {
        (self.open)()
    }
}

/// The processor, which every build has.
impl Default for &NamedDevice {
    fn default() -> Self {
        &DEVICES[0]
    }
}
