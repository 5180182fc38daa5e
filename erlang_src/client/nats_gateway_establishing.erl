%% The steps between accept and the first operation of a client. This value has the steps that are
%% left, the process that owns the socket meanwhile, and the facts that became known of the client.
%%
%% `nats_gateway_handshake' does the steps that wait for the client, each in a process of its own.
-module(nats_gateway_establishing).

-export([new/0]).
-export([start/2]).
-export([next/1]).
-export([begins/2]).
-export([ends/2]).
-export([worker/1]).
-export([failed/2]).
-export([detail/1]).
-export([peername/2]).
-export([peername/1]).
-export([agreed/2]).
-export([settings/2]).
-export([client/3]).
-export([must_log_in/1]).

-export_type([establishing/0]).

-type peername() :: {inet:ip_address(), inet:port_number()}.

-record(establishing, {
    steps = [] :: [peername | nats_gateway_handshake:step()],
    %% the process that owns the socket now, if it is not the connection
    worker :: undefined | pid(),
    peername :: undefined | peername(),
    %% the cookies of the HTTP request that opened the WebSocket
    cookies = #{} :: #{jwt => binary()},
    %% more about the reason of a failure, for the log
    detail = none :: none | binary()
}).

-opaque establishing() :: #establishing{}.

-spec new() -> establishing().
new() -> #establishing{}.

-spec start(nats_gateway_connection:options(), establishing()) -> establishing().
start(Options, Establishing) ->
    Proxy = [Step || Step <- [proxy, peername], is_map_key(proxy_protocol, Options)],
    Steps = nats_gateway_handshake:steps(
        maps:get(tls, Options, none), maps:get(websocket, Options, none)
    ),
    Establishing#establishing{steps = [peername | Proxy] ++ Steps}.

-spec next(establishing()) -> {peername | nats_gateway_handshake:step(), establishing()} | done.
next(#establishing{steps = []}) -> done;
next(Establishing = #establishing{steps = [Step | Steps]}) ->
    {Step, Establishing#establishing{steps = Steps}}.

%% The worker owns the socket now.
-spec begins(pid(), establishing()) -> establishing().
begins(Worker, Establishing) -> Establishing#establishing{worker = Worker}.

%% The connection owns the socket again. `More' are further steps that this step has found
%% necessary.
-spec ends(More :: [nats_gateway_handshake:step()], establishing()) -> establishing().
ends(More, Establishing = #establishing{steps = Steps}) ->
    Establishing#establishing{worker = undefined, steps = More ++ Steps}.

-spec worker(establishing()) -> undefined | pid().
worker(#establishing{worker = Worker}) -> Worker.

-spec failed(Detail :: none | binary(), establishing()) -> establishing().
failed(Detail, Establishing) -> Establishing#establishing{worker = undefined, detail = Detail}.

-spec detail(establishing()) -> none | binary().
detail(#establishing{detail = Detail}) -> Detail.

-spec peername(peername(), establishing()) -> establishing().
peername(Peername, Establishing) -> Establishing#establishing{peername = Peername}.

-spec peername(establishing()) -> undefined | peername().
peername(#establishing{peername = Peername}) -> Peername.

%% The WebSocket is open. The HTTP request for it may have the client's own address, which otherwise
%% only the proxy in front of the gateway knows.
-spec agreed(map(), establishing()) -> establishing().
agreed(Agreed, Establishing = #establishing{peername = {Address, Port}}) ->
    Establishing#establishing{
        cookies = maps:get(cookies, Agreed, #{}),
        peername = {maps:get(address, Agreed, Address), maps:get(port, Agreed, Port)}
    }.

%% The argument of `nats_gateway_handshake:start/3' for a step.
-spec settings(nats_gateway_handshake:step(), nats_gateway_connection:options()) -> term().
settings(proxy, #{proxy_protocol := Timeout}) -> Timeout;
settings(upgrade, #{websocket := Websocket}) -> Websocket;
settings(_, #{tls := Tls}) -> Tls.

%% The client as the channel and the host see it before the login.
-spec client(nats_gateway_transport:socket(), nats_gateway_connection:options(), establishing()) ->
    {ok, nats_gateway_host:client()} | {error, term()}.
client(Socket, Options, #establishing{peername = Peername, cookies = Cookies}) ->
    case nats_gateway_transport:sockname(Socket) of
        {ok, Sockname} ->
            #{config := Config, listener := Listener} = Options,
            {ok, #{
                connect => #{},
                client_id => client_id(),
                transport => maps:get(transport, Options, tcp),
                listener => Listener,
                peername => Peername,
                sockname => Sockname,
                peercert => nossl,
                nonce => undefined,
                cookies => Cookies,
                server_info => server_info(Socket, Options),
                config => Config
            }};
        {error, _} = Error ->
            Error
    end.

%% The id has 31 bits, because jnats reads it as an int.
client_id() -> erlang:unique_integer([positive, monotonic]) band 16#7FFFFFFF.

server_info(Socket, Options = #{tls := Tls}) ->
    Info = nats_gateway_tls:server_info(Tls, nats_gateway_transport:is_secured(Socket)),
    case Options of
        %% nats-server does the same.
        #{websocket := _} -> Info#{tls_available => true};
        #{} -> Info
    end;
server_info(_, _) ->
    #{}.

%% Whether a client must send CONNECT in time. As in nats-server with a no_auth_user, it must even
%% where a client that sends no CONNECT would be let in.
-spec must_log_in(nats_gateway_config:config()) -> boolean().
must_log_in(#{auth_required := Required, login := Login}) ->
    Required orelse Login =/= nats_gateway_login:none().
