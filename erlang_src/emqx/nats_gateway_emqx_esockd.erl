%% Listeners of EMQX's esockd, for TCP and TLS. EMQX's REST API looks for them in esockd, and asks
%% esockd how many connections they have.
-module(nats_gateway_emqx_esockd).

-behaviour(nats_gateway_emqx_listeners).

-export([options/2]).
-export([excludes/2]).
-export([open/3]).
-export([change/4]).
-export([stop/1]).
-export([stop_accepting/1]).
-export([connections/1]).

-type options() :: [{atom(), term()}].

-spec options(nats_gateway_emqx_config:listener(), AccessRules :: [term()]) -> options().
options(Listener, AccessRules) ->
    [{access_rules, AccessRules} | nats_gateway_emqx_config:esockd_options(Listener)].

%% esockd identifies a listener by its name and its address.
-spec excludes(nats_gateway_emqx_listeners:id(), nats_gateway_emqx_listeners:id()) ->
    boolean().
excludes(Id, Other) -> Id =:= Other.

-spec open(nats_gateway_emqx_listeners:id(), options(), Key :: term()) ->
    {ok, pid()} | {error, term()}.
open({Name, Bind}, Options, Key) ->
    case esockd:open(Name, Bind, Options, start_function(Key)) of
        {ok, Pid} -> {ok, Pid};
        {error, Reason} -> {error, cause(Reason)}
    end.

%% EMQX's supervisors wrap the error of a socket in their own.
cause({shutdown, {failed_to_start_child, listener, Reason}}) -> cause(Reason);
cause({{shutdown, {failed_to_start_child, listener, Reason}}, _}) -> cause(Reason);
cause(Reason) -> Reason.

%% The connections stay open. An error means that some options need a new socket.
-spec change(nats_gateway_emqx_listeners:id(), options(), options(), Key :: term()) ->
    ok | {error, term()}.
change(Id, _, New, Key) ->
    esockd:reset_options(Id, [{connection_mfargs, start_function(Key)} | New]).

start_function(Key) -> {nats_gateway_connection, start_link, [Key]}.

-spec stop(nats_gateway_emqx_listeners:id()) -> ok.
stop(Id) ->
    _ = esockd:close(Id),
    ok.

-spec stop_accepting(nats_gateway_emqx_listeners:id()) -> ok.
stop_accepting(Id) ->
    try
        _ = supervisor:terminate_child(esockd:listener(Id), acceptor_sup),
        ok
    catch
        error:not_found -> ok
    end.

-spec connections(nats_gateway_emqx_listeners:id()) -> [pid()].
connections(Id) ->
    try esockd_listener_sup:connection_sup(esockd:listener(Id)) of
        Sup -> [Pid || {_, Pid, _, _} <- supervisor:which_children(Sup), is_pid(Pid)]
    catch
        error:not_found -> []
    end.
