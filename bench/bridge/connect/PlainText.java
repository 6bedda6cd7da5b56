import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ManagedChannelBuilder;
import io.grpc.ManagedChannelProvider;
import io.grpc.MethodDescriptor;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.net.InetSocketAddress;
import java.net.SocketAddress;
import java.util.Collection;
import java.util.List;

/**
 * Lets Google's connector speak to a Pub/Sub without TLS, for which it has no setting. gRPC finds it as a service and
 * prefers it to its own; all else is the connector as it comes.
 */
public final class PlainText extends ManagedChannelProvider {
  @Override
  protected boolean isAvailable() {
    return true;
  }

  /** Above gRPC's own, which are 5 at most. */
  @Override
  protected int priority() {
    return 9;
  }

  @Override
  protected ManagedChannelBuilder<?> builderForAddress(String host, int port) {
    return plain(NettyChannelBuilder.forAddress(host, port));
  }

  @Override
  protected ManagedChannelBuilder<?> builderForTarget(String target) {
    return plain(NettyChannelBuilder.forTarget(target));
  }

  @Override
  protected NewChannelBuilderResult newChannelBuilder(String target, ChannelCredentials credentials) {
    return NewChannelBuilderResult.channelBuilder(builderForTarget(target));
  }

  @Override
  protected Collection<Class<? extends SocketAddress>> getSupportedSocketAddressTypes() {
    return List.of(InetSocketAddress.class);
  }

  private static ManagedChannelBuilder<?> plain(NettyChannelBuilder builder) {
    return builder.usePlaintext().intercept(new WithoutCredentials());
  }

  /** gRPC refuses to send a token over a channel that is not encrypted, so none is sent. */
  private static final class WithoutCredentials implements ClientInterceptor {
    @Override
    public <Q, R> ClientCall<Q, R> interceptCall(MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
      return next.newCall(method, options.withCallCredentials(null));
    }
  }
}
