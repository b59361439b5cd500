// A photograph from the camera. Nothing is recorded: one picture is kept, and the camera is off when the dialogue closes.

import { byId } from "./elements";

const studio = byId<HTMLDialogElement>("studio");
const video = byId<HTMLVideoElement>("viewfinder");

/**
 * @param take is given the photograph
 * @param fail is told why there is none
 */
export function offerCamera(take: (photograph: Blob) => void, fail: (reason: string) => void): void {
  const button = byId<HTMLButtonElement>("camera");
  button.hidden = !navigator.mediaDevices?.getUserMedia; // as on pages that are not served by https
  button.onclick = async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      studio.showModal();
    } catch (error) {
      fail(error instanceof Error ? error.message : String(error));
    }
  };
  byId("close").onclick = () => studio.close();
  studio.onclose = () => {
    for (const track of (video.srcObject as MediaStream | null)?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  };
  byId("shutter").onclick = () => {
    if (!video.videoWidth) return; // no picture has come yet
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d")?.drawImage(video, 0, 0);
    studio.close();
    canvas.toBlob((photograph) => (photograph ? take(photograph) : fail("the picture could not be kept")));
  };
}
