%% The fields of CONNECT: the options that a client asks for, and its credentials.
-module(nats_gateway_connect).

-export([merge/2]).
-export([certified/2]).
-export([has_same_credentials/2]).
-export([options/1]).
-export([credentials/1]).
-export([without_secrets/1]).

-include("nats_gateway.hrl").
-include("nats_gateway_channel.hrl").

-export_type([fields/0]).

-type fields() :: nats_gateway_nif:connect().

%% A later CONNECT changes only the fields that it has. The accounts that nats-server had before 2.0
%% are refused.
-spec merge(fields(), nats_gateway_host:client()) ->
    {ok, nats_gateway_host:client()} | {error, authorization_violation}.
merge(Fields, Client = #{connect := Old}) ->
    case maps:merge(maps:merge(Old, Fields), maps:get(certified, Client, #{})) of
        #{account := Account} when Account =/= <<>> -> {error, authorization_violation};
        #{new_account := true} -> {error, authorization_violation};
        New -> {ok, Client#{connect := New}}
    end.

%% The name in the client's certificate takes the place of CONNECT's user.
-spec certified({ok, Name :: binary()} | none, nats_gateway_host:client()) ->
    nats_gateway_host:client().
certified({ok, User}, Client = #{connect := Fields}) ->
    Client#{certified => #{user => User}, connect := Fields#{user => User}};
certified(none, Client) ->
    Client.

-spec has_same_credentials(nats_gateway_host:client(), nats_gateway_host:client()) -> boolean().
has_same_credentials(#{connect := Some}, #{connect := Others}) ->
    Keys = [user, pass, auth_token, jwt, nkey, sig],
    maps:with(Keys, Some) =:= maps:with(Keys, Others).

%% The options of docs/protocol.md, section 2. A client that sends no CONNECT gets the defaults.
-spec options(fields()) ->
    {ok, #options{}} | {error, invalid_client_protocol | no_responders_requires_headers}.
options(#{protocol := Protocol}) when Protocol =/= 0, Protocol =/= 1 ->
    {error, invalid_client_protocol};
options(Fields) ->
    Default = #options{},
    Headers = maps:get(headers, Fields, Default#options.headers),
    case maps:get(no_responders, Fields, Default#options.no_responders) of
        true when not Headers ->
            {error, no_responders_requires_headers};
        NoResponders ->
            {ok, #options{
                verbose = maps:get(verbose, Fields, Default#options.verbose),
                pedantic = maps:get(pedantic, Fields, Default#options.pedantic),
                echo = maps:get(echo, Fields, Default#options.echo),
                no_responders = NoResponders,
                headers = Headers,
                protocol = maps:get(protocol, Fields, Default#options.protocol)
            }}
    end.

%% A browser sends its JWT in a cookie, because it cannot put it into CONNECT.
-spec credentials(nats_gateway_host:client()) -> fields().
credentials(#{connect := Fields, cookies := #{jwt := Jwt}}) ->
    case maps:get(jwt, Fields, <<>>) of
        <<>> -> Fields#{jwt => Jwt};
        _ -> Fields
    end;
credentials(#{connect := Fields}) ->
    Fields.

-spec without_secrets(fields()) -> fields().
without_secrets(Fields) -> maps:without([pass, auth_token, jwt, nkey, sig], Fields).
