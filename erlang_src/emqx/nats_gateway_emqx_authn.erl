%% Whether EMQX asks a NATS client for credentials, or lets it in whatever it says.
%%
%% EMQX's answer to a login is the same in both cases, and so is what its hook
%% `client.check_authn_complete' is told: `is_anonymous' is false where there is no authenticator. So
%% the chain that decides is looked at.
-module(nats_gateway_emqx_authn).

-export([is_asked_for_credentials/1]).

-define(GLOBAL_CHAIN, 'nats:global').

%% With an enabled authenticator, who is not known to any is refused. A listener's own chain has
%% precedence, even if it has no authenticator.
-spec is_asked_for_credentials(nats_gateway_emqx_client:clientinfo()) -> boolean().
is_asked_for_credentials(#{enable_authn := false}) ->
    false;
is_asked_for_credentials(#{listener := Listener}) ->
    case emqx_authn_chains:list_authenticators(Listener) of
        {ok, Authenticators} -> is_any_enabled(Authenticators);
        {error, {not_found, _}} -> is_any_enabled(emqx_authn_chains:list_authenticators(?GLOBAL_CHAIN));
        {error, _} -> false
    end.

is_any_enabled({ok, Authenticators}) -> is_any_enabled(Authenticators);
is_any_enabled({error, _}) -> false;
is_any_enabled(Authenticators) -> lists:any(fun(A) -> maps:get(enable, A, false) =:= true end, Authenticators).
